"""From documents to a tokenised dataset, split by document, with its terms found; on disk, and made once only."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import compress, tee
from pathlib import Path

import datasets
import numpy as np

from t5refine_peft.corpus.documents import SPLITS, Split, Unit
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.parts import made_once, run_parts, write_part
from t5refine_peft.corpus.prepared import PreparationSummary, Prepared, finish_dataset, load_prepared
from t5refine_peft.corpus.reading import Corpus, read_documents
from t5refine_peft.corpus.rows import Row, RowBuilder, row_features
from t5refine_peft.corpus.splits import Assignment, assign_splits
from t5refine_peft.corpus.spool import Spool, part_documents, spool_documents
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError
from t5refine_peft.storage import atomic_file

_FORMAT = "passages 2"


def prepare_dataset(
    corpus: Corpus,
    *,
    vocabulary: Vocabulary,
    glossary: Glossary | None = None,
    max_tokens: int = 256,
    context_tokens: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    keep_near_duplicates: bool = False,
    field: str = "text",
    unit: Unit | None = None,
    processes: int = 1,
    cache_dir: str | Path | None = None,
) -> datasets.DatasetDict:
    """Read, drop duplicates, split by document, tokenise and find terms; see `prepare_corpus`, which tells more.

    Returns:
        The splits `train`, `validation` and `test`, mapped from disk. A row is a passage: `ids` (tokens,) in the
        smallest integer type, `word_starts` (tokens,), `term_spans` (terms, 3) with first token, token after the last,
        and the term's number; `context_tokens`, how many tokens at its front are context from the passage before;
        `masked`, the token ranges that a written pair masks, or None; `document`, where the
        text is from; `length` in tokens.
    """
    return prepare_corpus(
        corpus,
        vocabulary=vocabulary,
        glossary=glossary,
        max_tokens=max_tokens,
        context_tokens=context_tokens,
        validation_share=validation_share,
        test_share=test_share,
        seed=seed,
        keep_near_duplicates=keep_near_duplicates,
        field=field,
        unit=unit,
        processes=processes,
        cache_dir=cache_dir,
    ).splits


def prepare_corpus(
    corpus: Corpus,
    *,
    vocabulary: Vocabulary,
    glossary: Glossary | None = None,
    max_tokens: int = 256,
    context_tokens: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    keep_near_duplicates: bool = False,
    field: str = "text",
    unit: Unit | None = None,
    processes: int = 1,
    cache_dir: str | Path | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> Prepared:
    """Prepare a corpus on disk, or find it there.

    The corpus is streamed: of each process, only a part of some megabytes is in memory. What was made lies in the
    cache by a fingerprint of text, glossary, tokenizer and options, so that a second call opens it, and a call after
    an interruption goes on with the next part. The cache holds the corpus's text, and may be deleted.

    Args:
        corpus: see `read_documents`; as are `field` and `unit`.
        vocabulary: the base model's.
        glossary: the terms to find; None finds none.
        max_tokens: the longest input, in tokens: passage, context and end mark. Written pairs stay whole, and those of
            more than 512 tokens of inputs or 256 of targets are left out.
        context_tokens: see `read_passages`.
        validation_share: share of documents for choosing the best checkpoint.
        test_share: share of documents for measuring base and adapter.
        seed: of the split; see `assign_splits`.
        keep_near_duplicates: keep training documents that nearly equal a test document; the test then says less.
        processes: how many work at once.
        cache_dir: None takes the folder `t5refine` in the cache of `datasets`.
        progress: called with a line now and then, while a large corpus is prepared.

    Raises:
        RefineError: no text, no term of the glossary in it, or too few documents for three splits.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "t5refine" if cache_dir is None else Path(cache_dir)
    spool = spool_documents(corpus, cache=cache, field=field, unit=unit, processes=processes, progress=progress)
    told = {
        "format": [_FORMAT, version("t5refine-peft")],
        "documents": spool.fingerprint,
        "vocabulary": vocabulary.fingerprint,
        "glossary": glossary.fingerprint if glossary else None,
        "options": [max_tokens, context_tokens, validation_share, test_share, seed, keep_near_duplicates],
    }
    fingerprint = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    directory = cache / f"passages-{fingerprint}"
    with made_once(directory) as unfinished:
        if unfinished is not None:
            assignment = assign_splits(
                spool,
                validation_share=validation_share,
                test_share=test_share,
                seed=seed,
                keep_near_duplicates=keep_near_duplicates,
            )
            builder = RowBuilder(vocabulary, glossary, max_tokens=max_tokens, context_tokens=context_tokens)
            _write_passages(spool, assignment, builder, unfinished, processes, progress, fingerprint)
    return load_prepared(directory)


def prepare_rows(
    corpus: Corpus,
    *,
    vocabulary: Vocabulary,
    glossary: Glossary | None = None,
    max_tokens: int = 256,
    context_tokens: int = 0,
    field: str = "text",
    unit: Unit | None = None,
) -> datasets.Dataset:
    """Read, tokenise and find terms without splitting: a part that the caller has set apart; see `prepare_dataset`."""
    builder = RowBuilder(vocabulary, glossary, max_tokens=max_tokens, context_tokens=context_tokens)
    documents = read_documents(corpus, field=field, unit=unit)
    return builder.dataset([row for passages in builder.rows(documents) for row in passages])


def _write_passages(
    spool: Spool,
    assignment: Assignment,
    builder: RowBuilder,
    directory: Path,
    processes: int,
    progress: Callable[[str], None],
    fingerprint: str,
) -> None:
    writer = _PassageWriter(builder, directory)
    for split in SPLITS:
        (directory / split).mkdir(exist_ok=True)
    tasks = list(zip(spool.parts, assignment.codes, strict=True))
    left = [task for task in tasks if not writer.note(task[0]).exists()]
    for done, _ in enumerate(run_parts(writer, left, processes=processes), start=len(tasks) - len(left) + 1):
        progress(f"tokenised {done} of {len(tasks)} parts")
    notes = [writer.note(part) for part in spool.parts]
    summary = _summary(spool, assignment, builder, notes)
    _check(summary, builder.glossary)
    files: dict[Split, list[Path]] = {split: sorted((directory / split).glob("*.arrow")) for split in SPLITS}
    finish_dataset(directory, files, summary, features=row_features(builder.vocabulary), fingerprint=fingerprint)
    for note in notes:
        note.unlink()


class _PassageWriter:
    """Writes the passages of one part of the documents, a file a split, and then a note of what it wrote."""

    def __init__(self, builder: RowBuilder, directory: Path) -> None:
        self._builder = builder
        self._directory = directory

    def note(self, part: Path) -> Path:
        """The file that says that a part is done."""
        return self._directory / f"{part.stem}.json"

    def __call__(self, task: tuple[Path, np.ndarray]) -> None:
        part, codes = task
        rows: dict[Split, list[Row]] = {split: [] for split in SPLITS}
        counts = {name: Counter[str]() for name in ("documents", "passages", "tokens", "term_occurrences")}
        terms: Counter[int] = Counter()
        dropped: Counter[str] = Counter()
        documents, told = tee(compress(part_documents(part), codes >= 0))
        for code, document, passages in zip(
            codes[codes >= 0].tolist(), told, self._builder.rows(documents), strict=True
        ):
            split = SPLITS[code]
            if not passages:
                dropped["without_passage" if document.masked is None else "long_pairs"] += 1
            counts["documents"][split] += bool(passages)
            counts["passages"][split] += len(passages)
            for row in passages:
                counts["tokens"][split] += len(row.ids)
                counts["term_occurrences"][split] += len(row.term_spans)
                terms.update(row.term_spans[:, 2].tolist())
            rows[split] += passages
        for split, own in rows.items():
            if own:
                features = row_features(self._builder.vocabulary)
                write_part(self._directory / split / part.name, self._builder.table(own), features)
        with atomic_file(self.note(part)) as temporary:
            temporary.write_text(json.dumps({**counts, "terms": terms, "dropped": dropped}))


def _summary(spool: Spool, assignment: Assignment, builder: RowBuilder, notes: Iterable[Path]) -> PreparationSummary:
    counts: dict[str, Counter[str]] = {}
    for note in notes:
        for name, values in json.loads(note.read_text()).items():
            counts.setdefault(name, Counter()).update(values)
    by_split: dict[str, dict[Split, int]] = {
        name: {split: counts[name][split] for split in SPLITS}
        for name in ("documents", "passages", "tokens", "term_occurrences")
    }
    terms = builder.glossary.terms if builder.glossary else ()
    return PreparationSummary(
        **by_split,
        term_counts={terms[int(number)]: count for number, count in counts["terms"].most_common()},
        duplicates=assignment.duplicates,
        near_duplicates=assignment.near_duplicates,
        without_passage=counts["dropped"]["without_passage"],
        long_pairs=counts["dropped"]["long_pairs"],
        messages=spool.report().messages(),
        max_tokens=builder.max_tokens,
        context_tokens=builder.context_tokens,
        vocabulary_fingerprint=builder.vocabulary.fingerprint,
        glossary_fingerprint=builder.glossary.fingerprint if builder.glossary else None,
    )


def _check(summary: PreparationSummary, glossary: Glossary | None) -> None:
    """Refuse what can't be trained on or measured."""
    if glossary is not None and not summary.term_counts:
        raise RefineError(
            f"none of the {len(glossary.terms)} terms occurs in the corpus (the first is {glossary.terms[0]!r}); "
            "check that list and corpus are of one language and domain"
        )
    empty = [split for split in SPLITS if not summary.passages[split]]
    if empty:
        dropped = summary.duplicates, summary.near_duplicates
        raise RefineError(
            f"the corpus has {sum(summary.documents.values())} documents"
            f"{' (without {} equal and {} nearly equal ones)'.format(*dropped) if any(dropped) else ''}, too few to "
            f"split into train, validation and test ({', '.join(empty)} got none); give more documents (a line of a "
            ".txt file is one)"
        )
