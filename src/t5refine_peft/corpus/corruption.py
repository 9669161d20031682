"""Span corruption as T5 has it, on token ids, with whole terms among the spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5refine_peft.config import CorruptionConfig
from t5refine_peft.corpus.tokenization import Vocabulary


@dataclass(frozen=True)
class Example:
    """A passage with spans masked.

    Attributes:
        input_ids: (inputs,) int32: the passage with a sentinel for each span, then the end mark.
        labels: (labels,) int32: each sentinel, followed by the tokens it stands for; then the end mark. As in T5's own
            preprocessing there is no closing sentinel.
        term_mask: (labels,) bool: the label tokens that belong to a term.
        spans: the masked token ranges of the passage, in order.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    term_mask: np.ndarray
    spans: tuple[tuple[int, int], ...]


def corrupt(
    ids: np.ndarray,
    *,
    word_starts: np.ndarray,
    term_spans: Sequence[tuple[int, int, int]],
    vocabulary: Vocabulary,
    config: CorruptionConfig,
    rng: np.random.Generator,
) -> Example:
    """Mask terms and random whole-word spans of a passage.

    Args:
        ids: (tokens,) the passage.
        word_starts: (tokens,) bool; random spans begin and end at words.
        term_spans: token ranges of terms with the term's number, in order, not overlapping.
        vocabulary: gives the sentinels and the end mark.
        config: the recipe.
        rng: the same state gives the same example.

    Returns:
        An example with at least one span, if the passage has two tokens or more.
    """
    budget = max(1, round(config.mask_share * len(ids)))
    chosen = [] if rng.random() < config.random_only else _choose_terms(term_spans, budget, config, rng)
    limit = len(vocabulary.sentinel_ids)
    taken = np.zeros(len(ids) + 2, dtype=bool)  # one place of margin on either side
    spans: list[tuple[int, int, bool]] = []

    def take(start: int, end: int, is_term: bool) -> int:
        """Mask the range if nothing masked overlaps or touches it."""
        if len(spans) == limit or taken[start : end + 2].any() or end - start >= len(ids):
            return 0
        taken[start + 1 : end + 1] = True
        spans.append((start, end, is_term))
        return end - start

    left = budget - sum(take(start, end, True) for start, end in chosen)
    words = np.flatnonzero(word_starts)
    ends = np.append(words[1:], len(ids))
    # Spans of geometric length (mean as configured), tried at words in random order until the budget is spent.
    lengths = rng.geometric(1.0 / config.mean_span_tokens, size=len(words))
    for word, length in zip(rng.permutation(len(words)).tolist(), lengths.tolist(), strict=True):
        if left <= 0:
            break
        start = int(words[word])
        last = int(np.searchsorted(ends, start + min(length, left)))
        left -= take(start, int(ends[min(last, len(ends) - 1)]), False)
    if not spans and len(ids) > 1:  # one long word, say
        at = int(rng.integers(len(ids)))
        spans.append((at, at + 1, False))
    return build_example(ids, sorted(spans), term_spans=term_spans, vocabulary=vocabulary)


def build_example(
    ids: np.ndarray,
    spans: Sequence[tuple[int, int, bool]],
    *,
    term_spans: Sequence[tuple[int, int, int]] = (),
    vocabulary: Vocabulary,
) -> Example:
    """Put sentinels for `spans` (start, end, is a term), which are in order and apart.

    A term that lies wholly inside a random span counts as a term in `term_mask` too.
    """
    term_tokens = np.zeros(len(ids), dtype=bool)
    for start, end, _ in term_spans:
        term_tokens[start:end] = True
    inputs: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    terms: list[np.ndarray] = []
    at = 0
    for number, (start, end, is_term) in enumerate(spans):
        sentinel = np.array([vocabulary.sentinel_ids[number]], dtype=np.int32)
        inputs += [ids[at:start], sentinel]
        labels += [sentinel, ids[start:end]]
        terms += [np.zeros(1, dtype=bool), np.ones(end - start, dtype=bool) if is_term else term_tokens[start:end]]
        at = end
    eos = np.array([vocabulary.eos_id], dtype=np.int32)
    return Example(
        input_ids=np.concatenate([*inputs, ids[at:], eos]).astype(np.int32, copy=False),
        labels=np.concatenate([*labels, eos]).astype(np.int32, copy=False),
        term_mask=np.concatenate([*terms, np.zeros(1, dtype=bool)]),
        spans=tuple((start, end) for start, end, _ in spans),
    )


def _choose_terms(
    term_spans: Sequence[tuple[int, int, int]], budget: int, config: CorruptionConfig, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw term occurrences within `budget` tokens; the first is taken whatever its length."""
    everywhere = rng.random() < config.all_occurrences
    drawn = rng.random(len(term_spans)) < config.term_probability
    if everywhere:
        terms = {term for (_, _, term), is_drawn in zip(term_spans, drawn, strict=True) if is_drawn}
        drawn = np.array([term in terms for _, _, term in term_spans], dtype=bool)
    groups: dict[int, list[tuple[int, int]]] = {}
    for number, ((start, end, term), is_drawn) in enumerate(zip(term_spans, drawn, strict=True)):
        if is_drawn:
            groups.setdefault(term if everywhere else -1 - number, []).append((start, end))
    chosen: list[tuple[int, int]] = []
    order = list(groups.values())
    for group in (order[i] for i in rng.permutation(len(order))):
        size = sum(end - start for start, end in group)
        if not chosen or size <= budget:
            chosen += group
            budget -= size
    return chosen
