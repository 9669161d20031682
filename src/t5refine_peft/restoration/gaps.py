"""Find the gaps in a text: by their marks, or where the caller says they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from t5refine_peft.errors import RefineError

_MARKS = re.compile(r"<extra_id_[0-9]+>|\[MASK\]|_{3,}|＿{2,}|□+|\{gap\}")
_COUNTED = "□＿"
"""Marks that stand for a character each."""


@dataclass(frozen=True)
class Gap:
    """A gap in a text: characters `start` to `end` are to be replaced. An empty range is a gap too.

    `found` says that it was found as damage rather than given.
    """

    start: int
    end: int
    found: bool = False


def find_gaps(text: str, *, mark: str | None = None) -> list[Gap]:
    """Find the gaps: T5's sentinels and the usual marks, or only `mark` where one is given."""
    pattern = _MARKS if mark is None else re.compile(re.escape(mark))
    return [Gap(*match.span()) for match in pattern.finditer(text)]


def check_ranges(text: str, ranges: Sequence[tuple[int, int]]) -> list[Gap]:
    """Take gaps given as character ranges.

    Raises:
        RefineError: a range is no pair of whole numbers, lies outside the text, is turned round, or begins before the
            one before it ends.
    """
    given: Any = ranges
    if not isinstance(given, list | tuple) or not all(_is_range(one) for one in given):
        raise RefineError(
            f"gaps must be a list of ranges (start, end) of whole numbers for each text, found {repr(given)[:60]}"
        )
    reached = 0
    for start, end in ranges:
        if not reached <= start <= end <= len(text):
            raise RefineError(
                f"gaps must be ranges (start, end) in order, apart and within the {len(text)} characters of the text, "
                f"found ({start}, {end}) after {reached}"
            )
        reached = end
    return [Gap(start, end) for start, end in ranges]


def _is_range(given: object) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(border, Integral) for border in given)


def counted_characters(text: str, gap: Gap) -> int | None:
    """How many characters a gap stands for, where its mark tells: one for each □ or ＿, or for each of a range.

    Other marks, and an empty range, tell no length.
    """
    marked = text[gap.start : gap.end]
    if not marked or (_MARKS.fullmatch(marked) and marked[0] not in _COUNTED):
        return None
    return len(marked)
