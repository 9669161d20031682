"""Text in the form in which terms are compared, and the way back to the text's own characters."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import regex

from t5refine_peft.corpus.characters import written_without_spaces

_JOINS = regex.compile(r"[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=L}\p{GCB=V}\p{GCB=T}\u00ad]")
"""Characters that normalisation may join to the one before, and the soft hyphen."""
_LINE_BREAK = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
_FEW = 400
"""Up to so many characters are replaced one after the other, which is quicker than one pass through a table."""


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
    chars = set(text)
    plain = {char: _fold_unit(char) for char in chars}
    joins = [char for char in chars if _is_join(char)]
    wide = [char for char, folded in plain.items() if len(folded) != 1]
    whole = _fold_plain(text, plain)
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    origins: list[tuple[int, int]] = []
    length = reached = 0
    for match in _unit_pattern("".join(sorted(joins)), "".join(sorted(wide))).finditer(text):
        start, end = match.span()
        piece = _fold_space(text, start, end) if match[0].isspace() else _fold_unit(match[0])
        length += start - reached
        pieces += [whole[reached:start], piece]
        starts.append(length)
        length += len(piece)
        ends.append(length)
        origins.append((start, end))
        reached = end
    return Folded(
        "".join([*pieces, whole[reached:]]),
        np.array(starts, dtype=np.int64),
        np.array(ends, dtype=np.int64),
        np.array(origins, dtype=np.int64).reshape(-1, 2),
    )


def _fold_plain(text: str, folds: dict[str, str]) -> str:
    """`text` with each character folded that gives one character; others are left, so that the length stays."""
    changed = [(char, other) for char, other in folds.items() if char != other and len(other) == 1]
    if len(changed) > _FEW:
        return text.translate({ord(char): other for char, other in changed})
    for char, other in changed:  # in any order: what a character folds to is never folded again
        text = text.replace(char, other)
    return text


@lru_cache(maxsize=2**16)
def _fold_unit(unit: str) -> str:
    """A character, with what joins it, after NFKC and case folding."""
    return unicodedata.normalize("NFKC", unit.replace("\u00ad", "")).casefold()


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
def _is_join(char: str) -> bool:
    return _JOINS.match(char) is not None


@lru_cache(maxsize=1024)
def _unit_pattern(joins: str, wide: str) -> re.Pattern[str]:
    """What does not stand for one character: given characters, and runs of spaces but a single blank."""
    kinds = [r"\s{2,}", r"[^\S ]"]
    if wide:
        kinds.insert(0, f"[{re.escape(wide)}]")
    if joins:
        kinds.insert(0, rf"\S?[{re.escape(joins)}]+")
    return re.compile("|".join(kinds))
