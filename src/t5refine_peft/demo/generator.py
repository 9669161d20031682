"""Tables of facts, worded in many ways: documents for the demo and for the built-in base.

A subject is a TOML file: its language, and one or more tables, each with columns, rows and sentences, a line each.

    language = "en"

    [[table]]
    columns = "drug | class | use"
    terms = "drug | class"                     # the columns whose values are the subject's terms
    rows = '''
    furosemide | loop diuretic | pulmonary congestion; oedema
    '''
    sentences = '''
    {drug} is {a class} given for {use}.
    {drug} is {a class}; {other drug} is {a other class}.
    '''
    test_sentences = '''
    For {use}, {drug} may be chosen.
    '''

A slot names a column. ``{a class}`` puts the English indefinite article in front, ``{other drug}`` takes the value from
a second row of the same table. A cell may hold several values between semicolons: each mention takes one of them, all
of them true. Sentences begin with a capital of their own accord.

Documents of the split ``test`` say known facts in ways that ``train`` never shows: in ``test_sentences`` where a table
has them, elsewhere in the tenth of all pairs of row and sentence that is kept out of ``train``.
"""

from __future__ import annotations

import random
import re
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from t5refine_peft.errors import RefineError

Split = Literal["train", "test"]

_SLOT = re.compile(r"\{(?P<article>a )?(?P<other>other )?(?P<column>\w+)\}")
_RESERVED_SHARE = 10
"""One pair of row and sentence in this many is kept for ``test`` in a table without ``test_sentences``."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Facts of one kind, a row a thing, and the sentences that word them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    """Each cell is the tuple of its possible values."""
    sentences: tuple[str, ...]
    test_sentences: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    """The columns whose values are terms of the subject."""

    def sentences_for(self, row: int, split: Split) -> list[str]:
        """The sentences in which ``split`` words ``row``."""
        if self.test_sentences:
            return list(self.sentences if split == "train" else self.test_sentences)
        reserved = [zlib.crc32(f"{row} {text}".encode()) % _RESERVED_SHARE == 0 for text in self.sentences]
        return [text for text, held_out in zip(self.sentences, reserved, strict=True) if held_out == (split == "test")]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A language and its tables of facts."""

    name: str
    language: str
    tables: tuple[Table, ...]

    @classmethod
    def load(cls, path: Path) -> Subject:
        """Read a subject's TOML file.

        Raises:
            RefineError: a row has another number of cells than the table has columns, or a sentence names no column.
        """
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        tables = tuple(_read_table(table, path) for table in data["table"])
        return cls(name=path.stem, language=data["language"], tables=tables)

    def terms(self) -> list[str]:
        """Every value of a term column, once, in the order of the file."""
        found: dict[str, None] = {}
        for table in self.tables:
            for row in table.rows:
                for name in table.terms:
                    found.update(dict.fromkeys(row[table.columns.index(name)]))
        return list(found)

    def values(self) -> list[str]:
        """Every value of any column, once, in the order of the file."""
        found = (value for table in self.tables for row in table.rows for cell in row for value in cell)
        return list(dict.fromkeys(found))

    def documents(self, count: int, *, split: Split, seed: int, max_sentences: int = 5) -> Iterator[str]:
        """Yield ``count`` documents of one to ``max_sentences`` sentences; the same seed gives the same documents."""
        picker = random.Random(f"{self.name} {split} {seed}")
        weights = [len(table.rows) for table in self.tables]
        while count:
            table = picker.choices(self.tables, weights)[0]
            document = self._document(table, picker, split, picker.randint(2, max_sentences))
            if document:  # a row may have no sentence in a split
                count -= 1
                yield document

    def _document(self, table: Table, picker: random.Random, split: Split, length: int) -> str:
        """One document: mostly about one row, the rest of its sentences about a second."""
        main, second = picker.sample(range(len(table.rows)), 2)
        subjects = [main] * length if picker.random() < 0.6 else sorted(picker.choices([main, second], k=length))
        used: set[str] = set()
        sentences = []
        for row in subjects:
            left = [text for text in table.sentences_for(row, split) if text not in used]
            if not left:
                continue
            template = picker.choice(left)
            used.add(template)
            sentences.append(self._fill(template, table, row, second if row == main else main, picker))
        return ("" if self.language == "zh" else " ").join(sentences)

    def _fill(self, template: str, table: Table, row: int, other: int, picker: random.Random) -> str:
        def value(slot: re.Match[str]) -> str:
            source = table.rows[other if slot["other"] else row]
            text = picker.choice(source[table.columns.index(slot["column"])])
            if slot["article"]:
                text = ("an " if text[0].lower() in "aeiou" else "a ") + text
            return text

        text = _SLOT.sub(value, template)
        return text[0].upper() + text[1:]


def _read_table(table: dict[str, str], path: Path) -> Table:
    columns = _cells(table["columns"], "|")
    rows = tuple(tuple(_cells(cell, ";") for cell in line.split("|")) for line in _lines(table["rows"]))
    sentences, test_sentences = _lines(table["sentences"]), _lines(table.get("test_sentences", ""))
    for row in rows:
        if len(row) != len(columns) or not all(map(all, row)):
            raise RefineError(f"{path}: the row {row} has {len(row)} cells, expected {len(columns)}: {list(columns)}")
    for text in sentences + test_sentences:
        slots = [slot["column"] for slot in _SLOT.finditer(text)]
        if not slots or not set(slots) <= set(columns) or "{" in _SLOT.sub("", text):
            raise RefineError(f"{path}: the sentence {text!r} must name columns of {list(columns)}, found {slots}")
    terms = _cells(table.get("terms", ""), "|")
    return Table(columns=columns, rows=rows, sentences=sentences, test_sentences=test_sentences, terms=terms)


def _cells(text: str, separator: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in text.split(separator)) if text.strip() else ()


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
