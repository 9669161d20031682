"""Find damage that no mark tells of: words that the model holds improbable where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.restoration.encoding import Encoded
from t5refine_peft.restoration.gaps import Gap
from t5refine_peft.restoration.scoring import Assign, answer_log_probabilities
from t5refine_peft.restoration.windows import Window, make_windows, readable

_STRIDE = 6
"""Every sixth word is masked at once, about the share that T5 was trained with (15%, Raffel et al. 2020)."""


@dataclass(frozen=True)
class Word:
    """A word of a text, or a character in scripts without spaces, that can be judged: its place and its tokens."""

    gap: Gap
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """A window in which some words are masked, to be judged.

    Attributes:
        window: as the model reads it.
        words: for each of the window's covered gaps the number of its word; None for a gap that was given.
    """

    window: Window
    words: tuple[int | None, ...]


def find_words(text: str, given: Sequence[Gap], vocabulary: Vocabulary) -> list[Word]:
    """The words of a text, outside the gaps that were given."""
    text = readable(text)
    encoding = vocabulary.encode(text)
    if not len(encoding.ids):
        return []
    firsts = np.flatnonzero(vocabulary.words(encoding, text))
    words = []
    taken = [False] * (len(text) + 1)
    for gap in given:
        taken[gap.start : gap.end] = [True] * (gap.end - gap.start)
    cuts = {gap.start for gap in given if gap.start == gap.end}
    for first, last in zip(firsts.tolist(), [*firsts[1:].tolist(), len(encoding.ids)], strict=True):
        start, end = int(encoding.starts[first]), int(encoding.ends[last - 1])
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        whole = not any(taken[start:end]) and cuts.isdisjoint(range(start + 1, end))
        if whole and any(char.isalnum() for char in text[start:end]):
            words.append(Word(Gap(start, end), tuple(encoding.ids[first:last].tolist())))
    return words


def make_probes(text: str, given: Sequence[Gap], words: Sequence[Word], vocabulary: Vocabulary) -> list[Probe]:
    """Windows in which each word is masked once, with the given gaps open in all of them."""
    probes = []
    for offset in range(min(_STRIDE, len(words))):
        masked = {words[number].gap: number for number in range(offset, len(words), _STRIDE)}
        gaps = sorted([*given, *masked], key=lambda gap: (gap.start, gap.end))
        for window in make_windows(text, gaps, vocabulary):
            own = tuple(masked.get(gaps[number]) if number in window.gaps else None for number in window.covered)
            if any(number is not None for number in own):
                probes.append(Probe(window, own))
    return probes


@torch.inference_mode()
def score_probes(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    encoded: Encoded,
    probes: Sequence[Probe],
    words: Sequence[Sequence[Word]],
    assign: Assign,
) -> list[dict[int, float]]:
    """Judge the masked words of a batch.

    Args:
        model: base or base with adapter, in the context that it computes in.
        vocabulary: the base's.
        encoded: the probes' windows.
        probes: the batch.
        words: for each probe the words of its text.
        assign: told which text each row belongs to.

    Returns:
        For each probe, by number of its word, the log-probability of the word's least probable token, in nats, given
        the text around it and the tokens before.
    """
    sequences = []
    for probe, own in zip(probes, words, strict=True):
        sequence = [int(model.config.decoder_start_token_id)]
        for place, number in enumerate(probe.words):
            sequence.append(vocabulary.sentinel_ids[place])
            sequence += own[number].ids if number is not None else ()
        sequences.append(sequence)
    ones = torch.ones((len(probes), 1), device=encoded.mask.device)
    scored = answer_log_probabilities(
        model, encoded, range(len(probes)), sequences, [1] * len(probes), temperatures=ones, assign=assign
    )
    found: list[dict[int, float]] = []
    for probe, own, values in zip(probes, words, scored, strict=True):
        scores = {}
        at = 0
        for number in probe.words:
            at += 1  # the sentinel
            if number is not None:
                length = len(own[number].ids)
                scores[number] = float(values[at : at + length, 0].min())
                at += length
        found.append(scores)
    return found


def damaged_gaps(
    words: Sequence[Word], scores: Sequence[float], *, threshold: float, given: Sequence[Gap] = ()
) -> list[Gap]:
    """The words below the threshold as gaps; those that touch are one, unless a `given` gap stands between them."""
    gaps: list[Gap] = []
    cuts = {gap.start for gap in given}
    for word, score in zip(words, scores, strict=True):
        if score >= threshold:
            continue
        if gaps and gaps[-1].end == word.gap.start and word.gap.start not in cuts:
            gaps[-1] = Gap(gaps[-1].start, word.gap.end, found=True)
        else:
            gaps.append(Gap(word.gap.start, word.gap.end, found=True))
    return gaps


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well damage is told from sound words, measured on text that did not choose the threshold.

    Attributes:
        threshold: a word whose least probable token is below this log-probability, in nats, is damage.
        precision: share of the words called damage that were damaged.
        recall: share of the damaged words that were called so.
        words: number of words measured.
        damaged: number of them that were damaged.
    """

    threshold: float
    precision: float
    recall: float
    words: int
    damaged: int


def fit_threshold(scores: np.ndarray, damaged: np.ndarray) -> float:
    """The threshold with the best F0.5: a sound word that is changed does more harm than damage that is left.

    Args:
        scores: (words,) log-probabilities.
        damaged: (words,) bool, some True.
    """
    order = np.argsort(scores, kind="stable")
    hits = np.cumsum(damaged[order])
    called = np.arange(1, len(order) + 1)
    precision, recall = hits / called, hits / max(1, damaged.sum())
    quality = 1.25 * precision * recall / np.maximum(0.25 * precision + recall, 1e-12)
    best = int(np.argmax(quality))
    following = scores[order[best + 1]] if best + 1 < len(order) else scores[order[best]] + 1
    return float((scores[order[best]] + following) / 2)


def precision_recall(scores: np.ndarray, damaged: np.ndarray, threshold: float) -> tuple[float, float]:
    """Precision and recall of calling words below `threshold` damage; a precision of 1 where none is called so."""
    called = scores < threshold
    hits = int((called & damaged).sum())
    return (hits / int(called.sum()) if called.any() else 1.0), (hits / int(damaged.sum()) if damaged.any() else 1.0)
