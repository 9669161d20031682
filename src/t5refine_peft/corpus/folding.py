"""Text in the form in which terms are compared, and the way back to the text's own characters."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from t5refine_peft.corpus.characters import CodePointTable, code_points, may_join, written_without_spaces

_LINE_BREAK = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
_SOFT_HYPHEN = "\u00ad"
_UNIT = 0x110000
"""In place of a code point: the character does not stand for one, or may join the one before."""


@dataclass(frozen=True)
class Folded:
    """A text after NFKC and case folding, with each run of spaces as one.

    Each character stands for one of the original, in order, but for some units (a character with its accents, a run
    of spaces) that became shorter or longer.

    Attributes:
        text: the folded text.
        starts: (units,) where these units begin in `text`, in order.
        ends: (units,) where they end; a unit that was dropped ends where it begins.
        origins: (units, 2) their ranges in the original.
    """

    text: str
    starts: np.ndarray
    ends: np.ndarray
    origins: np.ndarray

    def original(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The original's ranges for ranges of `text`, none of them empty.

        Args:
            starts: (ranges,) where they begin in `text`.
            ends: (ranges,) where they end.

        Returns:
            Where they begin in the original, where they end, and which are real: the others cut through a unit.
        """
        if not len(self.starts):
            return starts, ends, np.ones(len(starts), dtype=bool)
        unit = np.searchsorted(self.starts, starts, side="right") - 1
        behind = (unit < 0) | (starts >= self.ends[unit])
        first = np.where(behind, starts + self._shift(unit), self.origins[unit, 0])
        real = behind | (starts == self.starts[unit])
        unit = np.searchsorted(self.starts, ends, side="left") - 1
        return first, ends + self._shift(unit), real & ((unit < 0) | (ends >= self.ends[unit]))

    def _shift(self, unit: np.ndarray) -> np.ndarray:
        """By how much a place behind `unit`, and before the next, lies further back in the original."""
        shift: np.ndarray = np.where(unit < 0, 0, self.origins[unit, 1] - self.ends[unit])
        return shift


def fold(text: str) -> Folded:
    """Fold `text`: NFKC, case folding, runs of spaces as one, soft hyphens dropped.

    A line break inside a text is a space, and nothing between two characters of a script without spaces; a blank line
    is a line break, which no term holds.
    """
    points = code_points(text)
    folded = _FOLDS[points]
    blank = points == ord(" ")
    odd = folded == _UNIT
    odd[1:] |= blank[1:] & blank[:-1]
    folded[odd] = 0
    whole = folded.tobytes().decode("utf-32-le", "surrogatepass")
    pieces: list[str] = []
    units: list[tuple[int, int, int, int]] = []
    length = reached = 0
    for at in np.flatnonzero(odd).tolist():
        if at < reached:
            continue
        start, end = _unit(text, at, reached)
        piece = _fold_space(text, start, end) if text[at].isspace() else _fold_unit(text[start:end])
        length += start - reached
        pieces += whole[reached:start], piece
        units.append((length, length + len(piece), start, end))
        length += len(piece)
        reached = end
    starts, ends, *origins = np.array(units, dtype=np.int64).reshape(-1, 4).T
    return Folded("".join([*pieces, whole[reached:]]), starts, ends, np.stack(origins, axis=1))


def _unit(text: str, at: int, reached: int) -> tuple[int, int]:
    """The range, behind `reached`, that is folded as one with the character `at`, the first odd one in it.

    A run of spaces, or a character with all that may join it.
    """
    start, end = at, at + 1
    if text[at].isspace():
        if start > reached and text[start - 1].isspace():
            start -= 1
        while end < len(text) and text[end].isspace():
            end += 1
        return start, end
    if start > reached and _joins(text[start]) and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and _joins(text[end]):
        end += 1
    return start, end


def _fold_space(text: str, start: int, end: int) -> str:
    breaks = len(_LINE_BREAK.findall(text, start, end))
    if breaks > 1:
        return "\n"
    if breaks and start and end < len(text):
        around = text[start - 1], text[end]
        if all(map(written_without_spaces, around)):
            return ""
    return " "


@lru_cache(maxsize=2**16)
def _fold_unit(unit: str) -> str:
    """A character, with what joins it, after NFKC and case folding."""
    return unicodedata.normalize("NFKC", unit.replace(_SOFT_HYPHEN, "")).casefold()


@lru_cache(maxsize=2**16)
def _joins(char: str) -> bool:
    return char == _SOFT_HYPHEN or may_join(char)


def _folded_point(char: str) -> int:
    """The code point that `char` alone folds to; `_UNIT` where it is not alone or folds to more, or is no blank."""
    folded = _fold_unit(char)
    return _UNIT if len(folded) != 1 or _joins(char) or (char.isspace() and char != " ") else ord(folded)


_FOLDS = CodePointTable(_folded_point, np.int32)
