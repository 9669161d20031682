"""The domain's terms, found in text: longest first, whole words where the script has them, one pass for any number."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ahocorasick

from t5refine_peft.corpus.characters import written_without_spaces
from t5refine_peft.corpus.reading import read_text
from t5refine_peft.errors import RefineError


@dataclass(frozen=True)
class TermMatch:
    """A term's place in a text: characters `start` to `end`, and the term's number in the glossary."""

    start: int
    end: int
    term: int


class Glossary:
    """A list of terms.

    Terms and text are compared after NFKC and case folding, so that full-width letters and capitals match.

    >>> Glossary(["heart failure", "heart"]).find("Heart failure, hearts, heart")
    [TermMatch(start=0, end=13, term=0), TermMatch(start=23, end=28, term=1)]
    """

    def __init__(self, terms: Iterable[str]) -> None:
        """Take `terms`, drop blank and repeated ones.

        Raises:
            RefineError: no term is left.
        """
        by_key = {_fold(term)[0]: term.strip() for term in reversed(list(terms)) if _fold(term)[0].strip()}
        self.terms: tuple[str, ...] = tuple(reversed(by_key.values()))
        if not self.terms:
            raise RefineError("the glossary holds no term: expected one term a line, found blank lines only")
        self._automaton = ahocorasick.Automaton()
        for number, key in enumerate(reversed(by_key)):
            stripped = key.strip()
            self._automaton.add_word(stripped, (number, len(stripped)))
        self._automaton.make_automaton()

    @classmethod
    def load(cls, path: str | Path) -> Glossary:
        """Read a term list: UTF-8, one term a line; blank lines and lines that begin with `#` are skipped.

        Raises:
            RefineError: the file can't be read, or holds no term.
        """
        lines = [line for line in read_text(Path(path)).splitlines() if not line.startswith("#")]
        try:
            return cls(lines)
        except RefineError as error:
            raise RefineError(f"{path}: {error}") from None

    @property
    def fingerprint(self) -> str:
        """Two glossaries with one fingerprint find the same terms."""
        return hashlib.sha256("\n".join(self.terms).encode()).hexdigest()[:16]

    def find(self, text: str) -> list[TermMatch]:
        """Find the terms in `text`: leftmost, longest, not overlapping; offsets are the text's own characters."""
        folded, origins = _fold(text)
        found = [
            (end - length + 1, -length, number)
            for end, (number, length) in self._automaton.iter(folded)
            if _stands_alone(folded, end - length + 1, end + 1)
        ]
        matches: list[TermMatch] = []
        reached = 0
        for start, negative_length, number in sorted(found):
            first, last = origins[start], origins[start - negative_length - 1]
            if first >= reached:
                reached = last + 1
                matches.append(TermMatch(first, reached, number))
        return matches


def _fold(text: str) -> tuple[str, range | list[int]]:
    """`text` after NFKC and case folding, and for each of its characters the index of the one it comes from."""
    if text.isascii():
        return text.lower(), range(len(text))
    pieces: list[str] = []
    origins: list[int] = []
    start = 0
    while start < len(text):  # a character and the marks that combine with it are normalised together
        end = start + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = unicodedata.normalize("NFKC", text[start:end]).casefold()
        pieces.append(piece)
        origins += [start] * (len(piece) - 1) + [end - 1] if piece else []
        start = end
    return "".join(pieces), origins


def _stands_alone(text: str, start: int, end: int) -> bool:
    return _is_border(text, start) and _is_border(text, end)


def _is_border(text: str, at: int) -> bool:
    """Whether a term may begin or end at `at`: not within a word of a script that has words."""
    if at in (0, len(text)):
        return True
    before, after = text[at - 1], text[at]
    if not (before.isalnum() and after.isalnum()):
        return True
    return written_without_spaces(before) or written_without_spaces(after)
