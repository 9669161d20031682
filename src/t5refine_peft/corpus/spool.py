"""A corpus on disk as Arrow files of documents, each with what the split and the search for duplicates need."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from t5refine_peft.corpus.chunks import in_chunks
from t5refine_peft.corpus.documents import SPLITS, Document, ReadingReport, Unit
from t5refine_peft.corpus.duplicates import PERMUTATIONS, signatures, text_key
from t5refine_peft.corpus.parts import made_once, run_parts, write_part
from t5refine_peft.corpus.reading import Corpus, corpus_files, corpus_paths, read_documents
from t5refine_peft.storage import atomic_file, fingerprint_files

_FORMAT = "documents 1"
_PART_CHARACTERS = 8_000_000
"""Of a part: small enough to lose little when interrupted, and to be held in memory by each process."""
_SIGNED_AT_ONCE = 1_000_000
_FEATURES = datasets.Features(
    {
        "source": datasets.Value("string"),
        "text": datasets.Value("string"),
        "masked": datasets.List(datasets.List(datasets.Value("int32"))),
        "declared": datasets.Value("int8"),
        "key": datasets.Value("uint64"),
        "signature": datasets.List(datasets.Value("uint32"), length=PERMUTATIONS),
    }
)
_REPORT = "report.json"
_UNDECLARED = -1


@dataclass(frozen=True)
class Spool:
    """Documents on disk.

    Attributes:
        directory: of `part-00000.arrow`, `part-00001.arrow`, ... and `report.json`.
        fingerprint: two spools with one fingerprint hold the same documents.
    """

    directory: Path
    fingerprint: str

    @property
    def parts(self) -> list[Path]:
        """The files of documents, in the corpus's order."""
        return sorted(self.directory.glob("part-*.arrow"))

    def report(self) -> ReadingReport:
        """How the corpus was read."""
        return ReadingReport.from_json((self.directory / _REPORT).read_text(encoding="utf-8"))

    def documents(self) -> Iterator[Document]:
        """All documents, duplicates too."""
        for part in self.parts:
            yield from part_documents(part)


def spool_documents(
    corpus: Corpus,
    *,
    cache: Path,
    field: str,
    unit: Unit | None,
    processes: int,
    progress: Callable[[str], None],
) -> Spool:
    """Write the documents of `corpus` into `cache`, if they are not there yet; go on where an earlier call stopped.

    Files are told by their contents, before any is decoded. An iterable is told by its documents, after it was read:
    it is read anew each time.

    Raises:
        RefineError: see `read_documents`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths = corpus_paths(corpus)
    if paths is None:
        return _spool_iterable(corpus, cache, field, unit, processes, progress)
    files = list(corpus_files(paths, ReadingReport()))
    told = json.dumps([_FORMAT, version("t5refine-peft"), list(map(str, files)), fingerprint_files(files), field, unit])
    fingerprint = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    spool = Spool(cache / f"documents-{fingerprint}", fingerprint)
    with made_once(spool.directory) as unfinished:
        if unfinished is not None:
            _write(corpus, unfinished, field, unit, processes, progress)
    return spool


def _spool_iterable(
    corpus: Corpus, cache: Path, field: str, unit: Unit | None, processes: int, progress: Callable[[str], None]
) -> Spool:
    """Read first, and see afterwards whether these documents are there already."""
    digest = hashlib.sha256(_FORMAT.encode())
    with tempfile.TemporaryDirectory(prefix=".documents-", dir=cache) as scratch:
        _write(corpus, Path(scratch), field, unit, processes, progress, digest)
        spool = Spool(cache / f"documents-{digest.hexdigest()[:16]}", digest.hexdigest()[:16])
        with made_once(spool.directory) as unfinished:
            if unfinished is not None:
                for file in Path(scratch).iterdir():
                    file.rename(unfinished / file.name)
    return spool


def part_column(part: Path, name: str) -> np.ndarray:
    """A column of numbers of a file of documents; `signature` is (documents, 128)."""
    column = datasets.Dataset.from_file(str(part)).data.column(name).combine_chunks()
    if name == "signature":
        column = column.flatten()
    numbers: np.ndarray = column.to_numpy(zero_copy_only=False)
    return numbers.reshape(-1, PERMUTATIONS) if name == "signature" else numbers


def part_documents(part: Path) -> Iterator[Document]:
    """The documents of a file of documents."""
    rows = datasets.Dataset.from_file(str(part)).select_columns(["source", "text", "masked", "declared"])
    for row in rows:
        masked = None if row["masked"] is None else tuple((start, end) for start, end in row["masked"])
        split = None if row["declared"] == _UNDECLARED else SPLITS[row["declared"]]
        yield Document(row["source"], row["text"], masked, split)


def _write(
    corpus: Corpus,
    directory: Path,
    field: str,
    unit: Unit | None,
    processes: int,
    progress: Callable[[str], None],
    digest: hashlib._Hash | None = None,
) -> None:
    report = ReadingReport()
    documents = read_documents(corpus, field=field, unit=unit, report=report)
    if digest is not None:
        documents = _hashed(documents, digest)
    tasks = (
        (part, chunk)
        for number, chunk in enumerate(in_chunks(documents, characters=_PART_CHARACTERS))
        if not (part := directory / f"part-{number:05d}.arrow").exists()
    )
    done = len(list(directory.glob("part-*.arrow")))
    for number, _ in enumerate(run_parts(_write_documents, tasks, processes=processes), start=done + 1):
        progress(f"read {number} parts of {_PART_CHARACTERS / 1e6:.0f} million characters")
    with atomic_file(directory / _REPORT) as temporary:
        temporary.write_text(report.to_json(), encoding="utf-8")


def _hashed(documents: Iterable[Document], digest: hashlib._Hash) -> Iterator[Document]:
    for document in documents:
        digest.update(json.dumps(asdict(document)).encode())
        yield document


def _write_documents(task: tuple[Path, list[Document]]) -> None:
    path, documents = task
    signed = [signatures(texts) for texts in _batches([document.text for document in documents])]
    flat = pa.array(np.concatenate(signed).ravel())
    table = pa.table(
        {
            "source": [document.source for document in documents],
            "text": [document.text for document in documents],
            "masked": pa.array([document.masked for document in documents], _FEATURES["masked"].pa_type),
            "declared": [SPLITS.index(d.split) if d.split else _UNDECLARED for d in documents],
            "key": pa.array([_key(document) for document in documents], pa.uint64()),
            "signature": pa.FixedSizeListArray.from_arrays(flat, PERMUTATIONS),
        },
        schema=_FEATURES.arrow_schema,
    )
    write_part(path, table, _FEATURES)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Texts in batches of about a million characters: the signatures' arrays take 40 bytes a character."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _SIGNED_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _key(document: Document) -> int:
    """Of a pair with its masks: the same text masked in another way is another example."""
    return text_key(document.text if document.masked is None else f"{document.masked}{document.text}")
