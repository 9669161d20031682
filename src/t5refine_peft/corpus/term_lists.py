"""Term lists in files: one term a line, or a table with variants and weights."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from t5refine_peft.corpus.reading import read_text
from t5refine_peft.errors import RefineError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Term:
    """A term of the domain."""

    text: str
    """As it is written in full."""
    variants: tuple[str, ...] = ()
    """Other ways to write it (abbreviations, synonyms); found and masked as the term itself."""
    weight: float = 1.0
    """Factor on its chance to be masked: 2 for twice as often, 0 for never."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise RefineError(f"the weight of {self.text!r} must be a number from 0 on, found {self.weight}")

    @property
    def spellings(self) -> tuple[str, ...]:
        """All ways to write it, the full one first."""
        return (self.text, *self.variants)


def read_terms(path: Path) -> list[Term]:
    """Read a term list.

    In a `.csv` or `.tsv` file a row is a term and its variants. If the first row begins with `term`, it names the
    columns: one may be `weight`, the others hold variants. Blank rows are passed over. In any other file a line is a
    term, and lines that begin with `#` are skipped.

    Raises:
        RefineError: the file can't be read, or a weight is no number.
    """
    text = read_text(path)
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is not None:
        return list(_rows(path, text, delimiter))
    return [Term(line.strip()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _rows(path: Path, text: str, delimiter: str) -> Iterator[Term]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    weight_column = None
    first = True
    read = 0
    try:
        for row in rows:
            read = rows.line_num
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if first and cells[0].casefold() == "term":
                names = [cell.casefold() for cell in cells]
                weight_column = names.index("weight") if "weight" in names else None
            else:
                yield _term(cells, weight_column, f"{path}, line {read}")
            first = False
    except csv.Error as error:
        raise RefineError(f"{path}, behind line {read}: expected a row of terms, found {error}") from None


def _term(cells: list[str], weight_column: int | None, where: str) -> Term:
    weight = 1.0
    if weight_column is not None and weight_column < len(cells):
        cell = cells.pop(weight_column)
        try:
            weight = float(cell or 1.0)
        except ValueError:
            raise RefineError(f"{where}: expected a number in the column 'weight', found {cell!r}") from None
    if not cells[0]:
        raise RefineError(f"{where}: expected a term in the first column, found variants only: {cells[1:]}")
    try:
        return Term(cells[0], tuple(cell for cell in cells[1:] if cell), weight)
    except RefineError as error:
        raise RefineError(f"{where}: {error}") from None
