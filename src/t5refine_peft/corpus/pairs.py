"""Pairs of inputs and targets with sentinels, as T5's scripts write them, and back."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from t5refine_peft.corpus.tokenization import SENTINEL_COUNT, Encoding, Vocabulary

SENTINEL = re.compile(r"<extra_id_(\d+)>")
LONGEST_INPUT, LONGEST_TARGET = 512, 256
"""Tokens of a pair that is trained on, sentinels and end mark counted: what T5-Refiner-DomainFocus pads and cuts to."""


def join_pair(inputs: str, targets: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Put the targets back into the inputs.

    Args:
        inputs: a text whose masked parts are `<extra_id_0>`, `<extra_id_1>`, ... in order.
        targets: each sentinel followed by what it stands for; a closing sentinel with nothing behind it may follow.

    Returns:
        The whole text, and the character ranges that were masked.

    Raises:
        ValueError: the sentinels are out of order, too many, or don't answer each other; the message says which.

    >>> join_pair("takes<extra_id_0> for oedema", "<extra_id_0> furosemide<extra_id_1>")
    ('takes furosemide for oedema', ((5, 16),))
    """
    visible, numbers = _cut(inputs)
    before, *hidden = (parts := _cut(targets))[0]
    answered = parts[1]
    if not numbers:
        raise ValueError("expected <extra_id_0> in the inputs, found no sentinel")
    if len(numbers) > SENTINEL_COUNT:
        raise ValueError(f"expected at most {SENTINEL_COUNT} sentinels, found {len(numbers)}")
    if numbers != list(range(len(numbers))):
        raise ValueError(f"expected the inputs' sentinels to count up from 0, found {_shown(numbers)}")
    if len(answered) == len(numbers) + 1 and not hidden[-1].strip():
        answered, hidden = answered[:-1], hidden[:-1]  # the closing sentinel
    if answered != numbers or before.strip():
        raise ValueError(f"expected targets for the sentinels {_shown(numbers)}, found {_shown(answered)}")
    blank = next((number for number, part in enumerate(hidden) if not part.strip()), None)
    if blank is not None:
        raise ValueError(f"expected text behind <extra_id_{blank}> in the targets, found none")
    text = visible[0]
    masked = []
    for part, after in zip(hidden, visible[1:], strict=True):
        masked.append((len(text), len(text) + len(part)))
        text += part + after
    return text, tuple(masked)


def encode_pair(
    text: str, masked: tuple[tuple[int, int], ...], vocabulary: Vocabulary
) -> tuple[Encoding, tuple[tuple[int, int], ...]]:
    """Encode a text so that its masked parts are whole pieces: as inputs and targets are encoded apart.

    Returns:
        The encoding, and the token ranges that are masked.
    """
    parts: list[Encoding] = []
    spans: list[tuple[int, int]] = []
    borders = [0, *(border for span in masked for border in span), len(text)]
    count = 0
    for number, (start, end) in enumerate(pairwise(borders)):
        part = (vocabulary.encode_continuation if number else vocabulary.encode)(text[start:end])
        if number % 2:
            spans.append((count, count + len(part.ids)))
        count += len(part.ids)
        parts.append(Encoding(part.ids, part.starts + np.int32(start), part.ends + np.int32(start)))
    joined = Encoding(
        *(np.concatenate(arrays) for arrays in zip(*((p.ids, p.starts, p.ends) for p in parts), strict=True))
    )
    return joined, tuple(spans)


def _cut(text: str) -> tuple[list[str], list[int]]:
    """The text around the sentinels, and the sentinels' numbers."""
    parts = SENTINEL.split(text)
    return parts[::2], [int(number) for number in parts[1::2]]


def _shown(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
    return shown or "none"
