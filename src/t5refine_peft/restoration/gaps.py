"""Find the gaps in a text, cut it into windows that a model can read, and fit the fillings in."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5refine_peft.corpus.characters import written_without_spaces
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError

_MARKS = re.compile(r"<extra_id_\d+>|\[MASK\]|_{3,}|＿{2,}|□+|\{gap\}")
_CLOSING = re.compile(r"[\s.,;:!?%)\]}'’”。，、；：！？）】》」』]")
_OPENING = re.compile(r"[\s(\[{'‘“（【《「『/-]")


@dataclass(frozen=True)
class Gap:
    """A gap in a text: characters `start` to `end` are to be replaced. An empty range is a gap too."""

    start: int
    end: int


@dataclass(frozen=True)
class Window:
    """A part of a text as the model reads it.

    Attributes:
        input_ids: (tokens,) with a sentinel for each gap, ending in the end mark.
        gaps: the numbers of its gaps in the text, in order.
    """

    input_ids: np.ndarray
    gaps: range


def find_gaps(text: str, *, mark: str | None = None) -> list[Gap]:
    """Find the gaps: T5's sentinels and the usual marks, or only `mark` where one is given."""
    pattern = _MARKS if mark is None else re.compile(re.escape(mark))
    return [Gap(*match.span()) for match in pattern.finditer(text)]


def check_ranges(text: str, ranges: Sequence[tuple[int, int]]) -> list[Gap]:
    """Take gaps given as character ranges.

    Raises:
        RefineError: a range lies outside the text, is turned round, or begins before the one before it ends.
    """
    reached = 0
    for start, end in ranges:
        if not reached <= start <= end <= len(text):
            raise RefineError(
                f"gaps must be ranges (start, end) in order, apart and within the {len(text)} characters of the text, "
                f"found ({start}, {end}) after {reached}"
            )
        reached = end
    return [Gap(start, end) for start, end in ranges]


def make_windows(text: str, gaps: Sequence[Gap], vocabulary: Vocabulary, *, max_tokens: int) -> list[Window]:
    """Encode a text around its gaps, in windows of at most `max_tokens` tokens and as many gaps as there are sentinels.

    A window holds neighbouring gaps, the text between them, and as much of the text on either side as fits, up to the
    next gap.
    """
    pieces = _segments(text, gaps, vocabulary)
    windows = []
    first = 0
    while first < len(gaps):
        last = first + 1
        size = 3  # sentinel, end mark, and one token of context at least
        while last < len(gaps) and last - first < len(vocabulary.sentinel_ids):
            size += len(pieces[last]) + 1
            if size > max_tokens * 3 // 4:
                break
            last += 1
        windows.append(_window(pieces, range(first, last), vocabulary, max_tokens))
        first = last
    return windows


def fit(filling: str, before: str, after: str) -> str:
    """Space a decoded filling as the script needs it between the characters around the gap.

    A space is put between words where neither the text nor the script says otherwise, and none beside a space, next
    to Han, Kana or Thai, before closing or behind opening punctuation.
    """
    starts_word = filling.startswith(" ")
    text = " ".join(filling.split())
    if not text:
        return ""
    front = starts_word and bool(before) and not _OPENING.match(before[-1]) and not _CLOSING.match(text[0])
    if front and (written_without_spaces(before[-1]) or written_without_spaces(text[0])):
        front = False
    back = bool(after) and after[0].isalnum() and text[-1].isalnum()
    if back and (written_without_spaces(after[0]) or written_without_spaces(text[-1])):
        back = False
    return f"{' ' if front else ''}{text}{' ' if back else ''}"


def normalized(text: str) -> str:
    """The form in which fillings are compared: NFKC, case-folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _segments(text: str, gaps: Sequence[Gap], vocabulary: Vocabulary) -> list[np.ndarray]:
    """Ids of the text before, between and behind the gaps, as they stand in one encoding of the whole."""
    borders = [0, *(border for gap in gaps for border in (gap.start, gap.end)), len(text)]
    segments = []
    for number, (start, end) in enumerate(zip(borders[::2], borders[1::2], strict=True)):
        encode = vocabulary.encode_continuation if number else vocabulary.encode
        segments.append(encode(text[start:end]).ids)
    return segments


def _window(pieces: Sequence[np.ndarray], gaps: range, vocabulary: Vocabulary, max_tokens: int) -> Window:
    inner = [pieces[number] for number in gaps[1:]]
    room = max(0, max_tokens - 1 - len(gaps) - sum(map(len, inner)))
    left, right = pieces[gaps.start], pieces[gaps.stop]
    take_left = min(len(left), max(room // 2, room - len(right)))
    take_right = min(len(right), room - take_left)
    parts: list[np.ndarray] = [left[len(left) - take_left :]]
    for number, piece in enumerate([*inner, right[:take_right]]):
        parts += [np.array([vocabulary.sentinel_ids[number]], dtype=np.int32), piece]
    parts.append(np.array([vocabulary.eos_id], dtype=np.int32))
    return Window(np.concatenate(parts).astype(np.int64), gaps)
