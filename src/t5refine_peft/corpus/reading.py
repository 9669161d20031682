"""Documents from files, folders and iterables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t5refine_peft.errors import RefineError

Unit = Literal["line", "file"]
"""What a document is in a text file."""

Corpus = str | Path | Iterable[Any]
"""A path, several paths, or an iterable of texts or of rows with a text field (a `datasets.Dataset`, say)."""

_SUFFIXES = (".txt", ".md", ".jsonl", ".csv")


@dataclass(frozen=True)
class Document:
    """A text and where it is from: file and line, or its number in an iterable."""

    source: str
    text: str


def read_documents(corpus: Corpus, *, field: str = "text", unit: Unit = "line") -> Iterator[Document]:
    """Yield the documents of `corpus` that are not blank.

    Args:
        corpus: `.txt`, `.md`, `.jsonl` or `.csv` files, folders of them, or an iterable of texts or rows.
        field: the text's name in JSONL, CSV and rows.
        unit: whether a line or the whole file is a document, in `.txt`; a `.md` file is one document.

    Raises:
        RefineError: a path that does not exist or has another suffix, text that is not UTF-8, a broken line, a
            missing field, or nothing but blanks.
    """
    empty = True
    for document in _documents(corpus, field, unit):
        if document.text.strip():
            _check_characters(document)
            empty = False
            yield document
    if empty:
        paths = [corpus] if isinstance(corpus, str | Path) else [item for item in corpus if isinstance(item, Path)]
        what = f"{', '.join(map(str, paths))} is" if paths else "the corpus is"
        raise RefineError(f"{what} empty: expected at least one document with text in it")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        RefineError: the file can't be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefineError(f"{path} is not UTF-8: byte {error.start} can't be read; convert the file first") from None
    except OSError as error:
        raise RefineError(f"{path} can't be read: {error.strerror}") from None


def _documents(corpus: Corpus, field: str, unit: Unit) -> Iterator[Document]:
    if isinstance(corpus, str | Path):
        for path in _files(Path(corpus)):
            yield from _file_documents(path, field, unit)
        return
    for number, item in enumerate(corpus, start=1):
        if isinstance(item, Path):
            yield from _documents(item, field, unit)
        elif isinstance(item, str):
            yield Document(f"document {number}", item)
        else:
            yield Document(f"document {number}", _field(item, field, f"document {number}"))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not files:
            raise RefineError(f"{path} holds no text: expected files that end in {', '.join(_SUFFIXES)}")
        return files
    if not path.exists():
        raise RefineError(f"{path} does not exist: expected a text file or a folder")
    if path.suffix.lower() not in _SUFFIXES:
        raise RefineError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}, found {path.suffix or 'none'}")
    return [path]


def _file_documents(path: Path, field: str, unit: Unit) -> Iterator[Document]:
    suffix = path.suffix.lower()
    text = read_text(path)
    if suffix == ".jsonl":
        yield from _json_lines(path, text, field)
    elif suffix == ".csv":
        yield from _csv_rows(path, text, field)
    elif suffix == ".md" or unit == "file":
        yield Document(str(path), text)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            yield Document(f"{path}:{number}", line.rstrip("\r"))


def _csv_rows(path: Path, text: str, field: str) -> Iterator[Document]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in rows:
            yield Document(f"{path}:{rows.line_num}", _field(row, field, f"{path}, line {rows.line_num}"))
    except csv.Error as error:
        raise RefineError(f"{path}, behind line {rows.line_num}: expected a row of CSV, found {error}") from None


def _json_lines(path: Path, text: str, field: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RefineError(f"{path}, line {number}: expected a JSON object, found {error.msg}") from None
            yield Document(f"{path}:{number}", _field(row, field, f"{path}, line {number}"))


def _check_characters(document: Document) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise RefineError(
            f"{document.source}: character {error.start} is half a surrogate pair; expected text that UTF-8 can hold"
        ) from None


def _field(row: object, field: str, where: str) -> str:
    if not isinstance(row, Mapping):
        raise RefineError(f"{where}: expected an object with the field {field!r}, found {type(row).__name__}")
    value = row.get(field)
    if not isinstance(value, str):
        raise RefineError(f"{where}: expected text in the field {field!r}, found the fields {sorted(map(str, row))}")
    return value
