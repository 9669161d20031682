"""Documents from files, folders, datasets and iterables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t5refine_peft.corpus.documents import Document, ReadingReport, Unit
from t5refine_peft.corpus.encodings import find_encoding, undecodable
from t5refine_peft.corpus.formats import SUFFIXES, file_documents, row_document
from t5refine_peft.errors import RefineError

Corpus = str | Path | Iterable[Any]
"""A path, several paths, or an iterable of texts or of rows with a text field (a `datasets.Dataset`, say)."""


def read_documents(
    corpus: Corpus, *, field: str = "text", unit: Unit | None = None, report: ReadingReport | None = None
) -> Iterator[Document]:
    """Yield the documents of `corpus` that are not blank.

    Args:
        corpus: files that end in `.txt`, `.md`, `.jsonl`, `.csv`, `.docx` or `.pdf`, folders of them, or an iterable
            of texts, paths, rows or `Document`s. In an iterable, a `str` that names a file or folder, or ends as such
            a file does, is a path.
        field: the text's name in JSONL, CSV and rows. Rows with `inputs` and `targets` instead are pairs.
        unit: what a document is in running text; by default a line in `.txt`, and the whole file in `.md`, `.docx`
            and `.pdf`. A row is always a document.
        report: filled with how the corpus was read.

    Raises:
        RefineError: a path that does not exist or has another suffix, an encoding that isn't known, a broken line, a
            missing field, or nothing but blanks and pairs that can't be used.
    """
    report = ReadingReport() if report is None else report
    empty = True
    for document in _documents(corpus, field, unit, report):
        if document.text.strip():
            _check_characters(document)
            empty = False
            yield document
    if empty and report.unusable_pairs:
        raise RefineError(
            f"none of the {report.unusable_pairs} pairs can be used; the first is {report.first_unusable_pair}"
        )
    if empty:
        paths = corpus_paths(corpus) or []
        what = f"{', '.join(map(str, paths))} is" if paths else "the corpus is"
        raise RefineError(f"{what} empty: expected at least one document with text in it")


def corpus_paths(corpus: Corpus) -> list[Path] | None:
    """The paths that make up `corpus`; None where it holds anything else, or can be read once only."""
    if isinstance(corpus, str | Path):
        return [Path(corpus)]
    if not isinstance(corpus, list | tuple) or not all(map(_is_path, corpus)):
        return None
    return [Path(item) for item in corpus]


def corpus_files(paths: Iterable[Path], report: ReadingReport) -> Iterator[Path]:
    """The files at `paths` and, recursively, in the folders among them, in order of name.

    Raises:
        RefineError: a path does not exist, has another suffix, or is a folder without such a file.
    """
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            files = [file for file in inside if file.suffix.lower() in SUFFIXES]
            report.other_files.update(file.suffix.lower() for file in inside if file.suffix.lower() not in SUFFIXES)
            if not files:
                raise RefineError(f"{path} holds no text: expected files that end in {', '.join(SUFFIXES)}")
            yield from files
        elif not path.exists():
            raise RefineError(f"{path} does not exist: expected a text file or a folder")
        elif path.suffix.lower() not in SUFFIXES:
            raise RefineError(
                f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, found {path.suffix or 'none'}"
            )
        else:
            yield path


def read_text(path: Path) -> str:
    """The text of a file, in whatever encoding it is.

    Raises:
        RefineError: the file can't be read, or its encoding isn't known.
    """
    encoding = find_encoding(path)
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise undecodable(path, encoding, error) from None
    except OSError as error:
        raise RefineError(f"{path} can't be read: {error.strerror}") from None


def _documents(corpus: Corpus, field: str, unit: Unit | None, report: ReadingReport) -> Iterator[Document]:
    if isinstance(corpus, str | Path):
        for path in corpus_files([Path(corpus)], report):
            report.files += 1
            empty = True
            for document in file_documents(path, field=field, unit=unit, report=report):
                empty = empty and not document.text.strip()
                yield document
            if empty:
                report.without_text.append(str(path))
        return
    if isinstance(corpus, Mapping | bytes) or not isinstance(corpus, Iterable):
        parts = f" of {', '.join(map(str, corpus))}; take one of these" if isinstance(corpus, Mapping) else ""
        raise RefineError(
            f"the corpus: expected a path, or an iterable of texts, rows or paths, found {type(corpus).__name__}{parts}"
        )
    for number, item in enumerate(corpus, start=1):
        source = f"document {number}"
        if _is_path(item):
            yield from _documents(Path(item), field, unit, report)
        elif isinstance(item, Document):
            yield item
        elif isinstance(item, str):
            yield Document(source, item)
        else:
            row = row_document(item, field=field, source=source, where=source, report=report)
            if row is not None:
                yield row


def _is_path(item: object) -> bool:
    """Whether an item of an iterable is a path: a `str` is one where it names a file, or ends as a text file does."""
    if isinstance(item, Path):
        return True
    if not isinstance(item, str) or len(item) > 1000 or "\n" in item or not item.strip():
        return False
    path = Path(item)
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _check_characters(document: Document) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise RefineError(
            f"{document.source}: character {error.start} is half a surrogate pair; expected text that UTF-8 can hold"
        ) from None
