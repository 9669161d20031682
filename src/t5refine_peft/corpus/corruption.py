"""Span corruption as T5 has it, on token ids, with whole terms among the spans."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5refine_peft.config import CorruptionConfig
from t5refine_peft.corpus.noise import damage
from t5refine_peft.corpus.tokenization import Vocabulary

TermSpan = tuple[int, int, int]
"""Tokens from the first to behind the last, and the term's number."""


@dataclass(frozen=True)
class Example:
    """A passage with spans masked.

    Attributes:
        input_ids: (inputs,) int32: the passage with a sentinel for each span, then the end mark.
        labels: (labels,) int32: each sentinel, followed by the tokens it stands for; then the end mark. As in T5's own
            preprocessing there is no closing sentinel.
        term_mask: (labels,) bool: the label tokens that belong to a term.
        spans: the masked token ranges of the passage, in order.
        terms: the occurrences of terms that were chosen, in order; each lies inside a span.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    term_mask: np.ndarray
    spans: tuple[tuple[int, int], ...]
    terms: tuple[TermSpan, ...] = ()


def corrupt(
    ids: np.ndarray,
    *,
    word_starts: np.ndarray,
    term_spans: Sequence[TermSpan],
    vocabulary: Vocabulary,
    config: CorruptionConfig,
    rng: np.random.Generator,
    context_tokens: int = 0,
    term_weights: Sequence[float] | None = None,
) -> Example:
    """Mask terms and random whole-word spans of a passage.

    Never more than the budget is masked, with two exceptions, both for passages that are short beside it: the first
    term may be longer (all its occurrences together, up to twice `max_span_tokens` and half of the passage: with the
    defaults, from 320 tokens on the budget holds), and where no whole word fits, the shortest is masked, or one token
    where that is most of the passage.

    Args:
        ids: (tokens,) the passage.
        word_starts: (tokens,) bool; random spans begin and end at words.
        term_spans: token ranges of terms with the term's number, in order; neighbours may share a piece.
        vocabulary: gives the sentinels and the end mark.
        config: the recipe.
        rng: the same state gives the same example.
        context_tokens: so many tokens at the front are context from the passage before: they stay visible, but for
            the other occurrences of a term that is masked wherever it stands.
        term_weights: (terms,) factor by which each term's chance is greater or smaller; None takes 1 for all.

    Returns:
        An example with at least one span, if the passage has two tokens or more behind its context.
    """
    own = len(ids) - context_tokens
    budget = max(1, min(own - 1, round(_mask_share(config, rng) * own)))
    mask = _Mask(len(ids), context_tokens, budget, config, len(vocabulary.sentinel_ids))
    if own > 1:
        if len(term_spans) and rng.random() >= config.random_only:
            _choose_terms(mask, term_spans, term_weights, config, rng)
        words = np.flatnonzero(word_starts[context_tokens:]) + context_tokens
        _add_random_spans(mask, words.tolist(), config, rng)
        if not mask.spans:
            mask.add(*_smallest_span(mask, words.tolist(), config, rng))
    example = build_example(
        ids, [(start, end, False) for start, end in sorted(mask.spans)], term_spans=term_spans, vocabulary=vocabulary
    )
    visible = example.input_ids
    if config.noise > 0:
        visible = _with_noise(ids, example.spans, vocabulary, config.noise, rng)
    return Example(visible, example.labels, example.term_mask, example.spans, tuple(sorted(mask.terms)))


def build_example(
    ids: np.ndarray,
    spans: Sequence[tuple[int, int, bool]],
    *,
    term_spans: Sequence[TermSpan] = (),
    vocabulary: Vocabulary,
) -> Example:
    """Put sentinels for `spans` (start, end, is a term), which are in order and do not overlap.

    A term that lies wholly inside a span counts as a term in `term_mask` too; `term_spans` are in order.
    """
    count = len(spans)
    sentinels = np.array(vocabulary.sentinel_ids[:count], dtype=np.int32)
    firsts, lasts = [start for start, _, _ in spans], [end for _, end, _ in spans]
    starts, ends = np.array(firsts, dtype=np.int64), np.array(lasts, dtype=np.int64)
    is_term = np.zeros(len(ids), dtype=bool)
    for start, end, whole in spans:
        if whole:
            is_term[start:end] = True
    at = 0
    for start, end, _ in term_spans:
        while at < count and lasts[at] < end:
            at += 1
        if at == count:
            break
        if firsts[at] <= start:
            is_term[start:end] = True
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths  # masked tokens in front of each span
    masked = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    places = before + np.arange(count)  # of the sentinels among the labels
    filled = np.ones(len(masked) + count + 1, dtype=bool)
    filled[places] = filled[-1] = False
    labels = np.empty(len(filled), dtype=np.int32)
    labels[-1] = vocabulary.eos_id
    labels[places] = sentinels
    labels[filled] = ids[masked]
    term_mask = np.zeros(len(filled), dtype=bool)
    term_mask[filled] = is_term[masked]
    visible = ids.astype(np.int32, copy=True)
    visible[starts] = sentinels
    stays = np.ones(len(ids), dtype=bool)
    stays[masked] = False
    stays[starts] = True
    return Example(
        input_ids=np.append(visible[stays], np.int32(vocabulary.eos_id)),
        labels=labels,
        term_mask=term_mask,
        spans=tuple(zip(firsts, lasts, strict=True)),
    )


class _Mask:
    """The spans of a passage as they are chosen, within budget, sentinels and label tokens."""

    def __init__(self, tokens: int, context_tokens: int, budget: int, config: CorruptionConfig, sentinels: int) -> None:
        self.spans: list[tuple[int, int]] = []
        self.terms: list[TermSpan] = []
        self.left = budget
        self.tokens = tokens
        self.context_tokens = context_tokens
        self._joined = config.touching == "joined"
        self._sentinels = sentinels
        self._labels_left = config.max_label_tokens - 1  # the end mark
        self._taken = bytearray(tokens + 2)  # one place of margin on either side

    @property
    def own_tokens(self) -> int:
        """Tokens behind the context."""
        return self.tokens - self.context_tokens

    def room(self) -> int:
        """Tokens that one more span may have."""
        return min(self.left, self._labels_left - 1) if len(self.spans) < self._sentinels else 0

    def is_free(self, start: int, end: int) -> bool:
        """Whether a random span there overlaps nothing, touches nothing that it may not, and leaves something."""
        margin = 0 if self._joined else 1
        return end - start < self.own_tokens and (self._taken.find(1, start + 1 - margin, end + 1 + margin) < 0)

    def add(self, start: int, end: int) -> None:
        """Mask a free range."""
        self._taken[start + 1 : end + 1] = b"\1" * (end - start)
        self.left -= end - start
        self._labels_left -= end - start
        if self._joined:
            start, end = self._absorb(start, end)
        self.spans.append((start, end))
        self._labels_left -= 1

    def add_terms(self, occurrences: Sequence[TermSpan], most: int) -> None:
        """Mask all `occurrences`, which are in order, or none if that takes more than `most` tokens or the sentinels.

        Those that share a piece, with each other or with what is masked already, become one span.
        """
        tokens = sum([self._visible(start, end) for start, end, _ in occurrences])
        count = len(occurrences)
        if tokens > most or len(self.spans) + count > self._sentinels or tokens + count > self._labels_left:
            return
        for occurrence in occurrences:
            start, end, _ = occurrence
            fresh = self._visible(start, end)
            self._taken[start + 1 : end + 1] = b"\1" * (end - start)
            self.left -= fresh
            if self._joined or fresh < end - start:
                start, end = self._absorb(start, end)
            self.spans.append((start, end))
            self._labels_left -= fresh + 1
            self.terms.append(occurrence)

    def _visible(self, start: int, end: int) -> int:
        """Tokens of a range that are not masked yet."""
        return end - start - self._taken.count(1, start + 1, end + 1)

    def _absorb(self, start: int, end: int) -> tuple[int, int]:
        """Take out of the spans what overlaps the range, or touches it where they are joined; return the whole."""
        reach = 1 if self._joined else 0
        met = [span for span in self.spans if span[0] < end + reach and start < span[1] + reach]
        for span in met:
            self.spans.remove(span)
            self._labels_left += 1
            start, end = min(start, span[0]), max(end, span[1])
        return start, end


def _mask_share(config: CorruptionConfig, rng: np.random.Generator) -> float:
    if isinstance(config.mask_share, tuple):
        return float(rng.uniform(*config.mask_share))
    return config.mask_share


def _choose_terms(
    mask: _Mask,
    term_spans: Sequence[TermSpan],
    weights: Sequence[float] | None,
    config: CorruptionConfig,
    rng: np.random.Generator,
) -> None:
    """Draw terms, in some passages every occurrence of each, and mask those that fit in random order."""
    everywhere = rng.random() < config.all_occurrences
    groups: dict[int, list[TermSpan]] = {}
    for number, span in enumerate(term_spans):
        groups.setdefault(span[2] if everywhere else number, []).append(span)
    choices = [spans for spans in groups.values() if spans[-1][0] >= mask.context_tokens]
    first = max(mask.left, min(mask.own_tokens // 2, 2 * config.max_span_tokens))
    draws = rng.random(len(choices)).tolist()
    for at in rng.permutation(len(choices)).tolist():
        if mask.spans and mask.left <= 0:
            break
        occurrences = choices[at]
        chance = config.term_probability * (1.0 if weights is None else weights[occurrences[0][2]])
        if draws[at] < chance and max(end - start for start, end, _ in occurrences) <= config.max_span_tokens:
            mask.add_terms(occurrences, mask.left if mask.spans else first)


def _add_random_spans(mask: _Mask, words: list[int], config: CorruptionConfig, rng: np.random.Generator) -> None:
    """Mask whole words, which begin at `words`, at random places until the budget is spent.

    Lengths are geometric in words, with a mean that makes `mean_span_tokens` tokens of words of this passage's length;
    SpanBERT draws words likewise (Joshi et al. 2020).
    """
    if not words or mask.left <= 0:
        return
    borders = [*words, mask.tokens]
    mean_words = max(1.0, config.mean_span_tokens * len(words) / (mask.tokens - words[0]))
    lengths = rng.geometric(1.0 / mean_words, size=len(words)).tolist()
    for word, length in zip(rng.permutation(len(words)).tolist(), lengths, strict=True):
        room = min(mask.room(), config.max_span_tokens)
        if room <= 0:
            break
        start = borders[word]
        last = min(word + length, len(words), bisect_right(borders, start + room) - 1)
        if last > word and mask.is_free(start, borders[last]):
            mask.add(start, borders[last])


def _smallest_span(
    mask: _Mask, words: list[int], config: CorruptionConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """The shortest word, or one token where even that is most of the passage."""
    spans = zip(words, [*words[1:], mask.tokens], strict=False)
    start, end = min(spans, key=lambda span: span[1] - span[0], default=(0, mask.tokens))
    if end - start <= min(mask.own_tokens // 2, config.max_span_tokens, config.max_label_tokens - 2):
        return start, end
    at = int(rng.integers(mask.context_tokens, mask.tokens))
    return at, at + 1


def _with_noise(
    ids: np.ndarray, spans: Sequence[tuple[int, int]], vocabulary: Vocabulary, share: float, rng: np.random.Generator
) -> np.ndarray:
    """The input of a passage whose visible text is damaged, with an end mark; never longer than without masks.

    A stretch between two spans is encoded anew where a character of it was hit, and is left as it was where the
    damage would make the input too long.
    """
    room = sum(end - start for start, end in spans) - len(spans)
    parts: list[np.ndarray] = []
    at = 0
    for number, (start, end) in enumerate([*spans, (len(ids), len(ids))]):
        stretch = ids[at:start]
        text = vocabulary.decode(stretch)
        damaged = damage(text, share=share, rng=rng)
        if damaged != text:
            again = vocabulary.encode_continuation(damaged).ids
            if len(again) - len(stretch) <= room:
                room -= len(again) - len(stretch)
                stretch = again
        parts.append(stretch)
        if number < len(spans):
            parts.append(np.array([vocabulary.sentinel_ids[number]], dtype=np.int32))
        at = end
    return np.concatenate([*parts, [vocabulary.eos_id]]).astype(np.int32)
