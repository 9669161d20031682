"""The documents of one file, by its suffix. Text and rows are streamed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from t5refine_peft.corpus.documents import Document, ReadingReport, Unit, split_of_file
from t5refine_peft.corpus.encodings import find_encoding, undecodable
from t5refine_peft.corpus.pairs import join_pair
from t5refine_peft.corpus.word import INSTALL_DOCUMENTS, word_document
from t5refine_peft.errors import RefineError

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".docx", ".pdf")

_LONGEST_FIELD = 2**31 - 1
"""Characters of a field in a table, which may be a whole document; csv stops at 131,072, and takes no more than this
where a C long has 32 bits."""


def file_documents(path: Path, *, field: str, unit: Unit | None, report: ReadingReport) -> Iterator[Document]:
    """Yield the documents of a file, blank ones too.

    Raises:
        RefineError: the file can't be read, or a line of it is not what its suffix says.
    """
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        yield from _units(path, _pdf_lines(path), unit or "file")
    elif suffix == ".docx":
        yield from _units(path, _docx_lines(path), unit or "file")
    else:
        encoding = _encoding(path, report)
        try:
            with path.open(encoding=encoding, newline="" if suffix == ".csv" else None) as stream:
                if suffix == ".jsonl":
                    yield from _json_lines(path, stream, field, report)
                elif suffix == ".csv":
                    yield from _csv_rows(path, stream, field, report)
                else:
                    yield from _units(path, stream, unit or ("file" if suffix == ".md" else "line"))
        except UnicodeDecodeError as error:
            raise undecodable(path, encoding, error) from None
        except OSError as error:
            raise RefineError(f"{path} can't be read: {error.strerror}") from None


def row_document(row: object, *, field: str, source: str, where: str, report: ReadingReport) -> Document | None:
    """The document of a row: its text field, or its `inputs` and `targets` put together; None for a pair at fault.

    Raises:
        RefineError: it has neither.
    """
    if not isinstance(row, Mapping):
        raise RefineError(f"{where}: expected an object with the field {field!r}, found {type(row).__name__}")
    text, inputs, targets = row.get(field), row.get("inputs"), row.get("targets")
    if isinstance(text, str):
        return Document(source, text)
    if isinstance(inputs, str) and isinstance(targets, str):
        try:
            return Document(source, *join_pair(inputs, targets))
        except ValueError as fault:
            report.leave_out_pair(where, str(fault))
            return None
    raise RefineError(
        f"{where}: expected text in the field {field!r}, or in 'inputs' and 'targets', found the fields "
        f"{sorted(map(str, row))}"
    )


def _encoding(path: Path, report: ReadingReport) -> str:
    encoding = find_encoding(path)
    if encoding != "utf-8-sig":
        report.encodings[str(path)] = encoding
    return encoding


def _units(path: Path, lines: Iterable[str], unit: Unit) -> Iterator[Document]:
    """Cut a file's lines into documents; only one document at a time is in memory."""
    if unit == "file":
        yield Document(str(path), "".join(lines))
        return
    run: list[str] = []
    first = 1
    for number, line in enumerate(lines, start=1):
        if unit == "line":
            yield Document(f"{path}:{number}", line.rstrip("\n"))
        elif line.strip():
            first = first if run else number
            run.append(line)
        elif run:
            yield Document(f"{path}:{first}", "".join(run).rstrip("\n"))
            run = []
    if run:
        yield Document(f"{path}:{first}", "".join(run).rstrip("\n"))


def _json_lines(path: Path, lines: Iterable[str], field: str, report: ReadingReport) -> Iterator[Document]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
                found = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise RefineError(f"{where}: expected a JSON object, found {found}") from None
            yield from _row(path, row, number, field, where, report)


def _csv_rows(path: Path, stream: io.TextIOBase, field: str, report: ReadingReport) -> Iterator[Document]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))  # for the whole process: csv knows no other way
    rows = csv.DictReader(stream, strict=True)  # else a stray quotation mark swallows all that follows
    try:
        for row in rows:
            yield from _row(path, row, rows.line_num, field, f"{path}, line {rows.line_num}", report)
    except csv.Error as error:
        raise RefineError(f"{path}, behind line {rows.line_num}: expected a row of CSV, found {error}") from None


def _row(path: Path, row: object, number: int, field: str, where: str, report: ReadingReport) -> Iterator[Document]:
    found = row_document(row, field=field, source=f"{path}:{number}", where=where, report=report)
    if found is not None and found.masked is not None:
        yield Document(found.source, found.text, found.masked, split_of_file(path))
    elif found is not None:
        yield found


def _pdf_lines(path: Path) -> Iterator[str]:
    """Lines as the page has them; pages are parted by a blank line."""
    try:
        import pypdf
    except ImportError:
        raise RefineError(
            f"{path}: reading .pdf needs the extra 'documents'; install it with {INSTALL_DOCUMENTS}"
        ) from None
    try:
        for page in pypdf.PdfReader(path).pages:
            yield from (page.extract_text().strip("\n") + "\n\n").splitlines(keepends=True)
    except Exception as error:  # a broken file makes its reader raise anything
        raise RefineError(f"{path} can't be read as a PDF ({error}); save it anew, or leave it out") from None


def _docx_lines(path: Path) -> Iterator[str]:
    """Paragraphs and rows of tables in their order, a line each."""
    with word_document(path) as document:
        from docx.table import Table

        for block in document.iter_inner_content():
            if isinstance(block, Table):
                for row in block.rows:
                    yield "\t".join(cell.text.replace("\n", " ") for cell in row.cells) + "\n"
            else:
                yield block.text + "\n"
