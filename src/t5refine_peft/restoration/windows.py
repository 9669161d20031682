"""Cut a text into windows that a model can read, with context around the gaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.restoration.gaps import Gap

MAX_SOURCE_TOKENS = 512
"""The longest text that T5 was trained to read at once."""
_CONTEXT_TOKENS = 32
"""So much text is wanted on either side of a window's own gaps, even where it has gaps in it."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, as `surrogateescape` leaves of bytes that are no UTF-8."""


@dataclass(frozen=True)
class Window:
    """A part of a text as the model reads it.

    Attributes:
        input_ids: (tokens,) int64 with a sentinel for each gap in `covered`, ending in the end mark.
        gaps: the numbers, in the text, of the gaps that this window answers.
        covered: the numbers of the gaps that it holds; those beside `gaps` are there for the text behind them.
    """

    input_ids: np.ndarray
    gaps: range
    covered: range


def readable(text: str) -> str:
    """`text` with a replacement character for each half character, so that it can be encoded; offsets stay."""
    return _SURROGATE.sub("\ufffd", text)


def make_windows(
    text: str, gaps: Sequence[Gap], vocabulary: Vocabulary, *, max_tokens: int = MAX_SOURCE_TOKENS
) -> list[Window]:
    """Encode a text around its gaps, in windows of at most `max_tokens` tokens and as many gaps as there are sentinels.

    Each gap is answered by one window. A text that fits is one window; others are cut between gaps, and each window
    gets as much of the text on either side as fits.
    """
    pieces = _segments(text, gaps, vocabulary)
    limit = len(vocabulary.sentinel_ids)
    if 0 < len(gaps) <= limit and sum(map(len, pieces)) + len(gaps) + 1 <= max_tokens:
        return [_window(pieces, range(len(gaps)), range(len(gaps)), vocabulary, max_tokens)]
    windows = []
    first = 0
    while first < len(gaps):
        last = first + 1
        size = 3  # sentinel, end mark, and one token of context at least
        while last < len(gaps) and last - first < limit * 3 // 4:
            size += len(pieces[last]) + 1
            if size > max_tokens * 3 // 4:
                break
            last += 1
        own = range(first, last)
        windows.append(_window(pieces, own, _covered(pieces, own, limit, max_tokens), vocabulary, max_tokens))
        first = last
    return windows


def _segments(text: str, gaps: Sequence[Gap], vocabulary: Vocabulary) -> list[np.ndarray]:
    """Ids of the text before, between and behind the gaps, as they stand in one encoding of the whole."""
    text = readable(text)
    borders = [0, *(border for gap in gaps for border in (gap.start, gap.end)), len(text)]
    segments = []
    for number, (start, end) in enumerate(zip(borders[::2], borders[1::2], strict=True)):
        encode = vocabulary.encode_continuation if number else vocabulary.encode
        segments.append(encode(text[start:end]).ids)
    return segments


def _covered(pieces: Sequence[np.ndarray], own: range, limit: int, max_tokens: int) -> range:
    """`own` and the gaps beside it that stand in the way of enough context."""
    first, last = own.start, own.stop
    left, right = len(pieces[first]), len(pieces[last])
    size = 1 + len(own) + sum(len(pieces[number]) for number in own[1:])
    size += min(left, _CONTEXT_TOKENS) + min(right, _CONTEXT_TOKENS)
    while last - first < limit:
        room = max_tokens - size
        if first > 0 and left < _CONTEXT_TOKENS and room > len(pieces[first - 1]):
            first -= 1
            left += len(pieces[first])
            size += len(pieces[first]) + 1
        elif last < len(pieces) - 1 and right < _CONTEXT_TOKENS and room > len(pieces[last + 1]):
            last += 1
            right += len(pieces[last])
            size += len(pieces[last]) + 1
        else:
            break
    return range(first, last)


def _window(
    pieces: Sequence[np.ndarray], own: range, covered: range, vocabulary: Vocabulary, max_tokens: int
) -> Window:
    inner = [pieces[number] for number in covered[1:]]
    room = max(0, max_tokens - 1 - len(covered) - sum(map(len, inner)))
    left, right = pieces[covered.start], pieces[covered.stop]
    take_left = min(len(left), max(room // 2, room - len(right)))
    take_right = min(len(right), room - take_left)
    parts: list[np.ndarray] = [left[len(left) - take_left :]]
    for number, piece in enumerate([*inner, right[:take_right]]):
        parts += [np.array([vocabulary.sentinel_ids[number]], dtype=np.int32), piece]
    parts.append(np.array([vocabulary.eos_id], dtype=np.int32))
    return Window(np.concatenate(parts).astype(np.int64), own, covered)
