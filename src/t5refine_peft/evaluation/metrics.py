"""Measures of restored gaps, as pure functions. Shares lie between 0 and 1, and random numbers come from a seed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics.chrf import CHRF
from scipy import stats

from t5refine_peft.restoration.spacing import normalized

_BATCH = 256  # resamples in memory at once


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share with its 95% confidence interval.

    Attributes:
        value: the share itself.
        low: lower end of the interval.
        high: upper end.
        count: gaps that it is a share of.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Answers whose probabilities lie in one range: how probable the model took them for, and how many are right."""

    score: float
    accuracy: float
    count: int


def is_exact(truth: str, answer: str) -> bool:
    """Whether two texts are the same after NFKC, case folding and folding of spaces.

    >>> is_exact("ＡＣＥ inhibitor", "ace  Inhibitor")
    True
    """
    return normalized(truth) == normalized(answer)


def micro(right: Sequence[float]) -> float:
    """Share of gaps that are right; 0 where there are none."""
    return float(np.mean(right)) if len(right) else 0.0


def macro(right: Sequence[bool], terms: Sequence[Hashable]) -> float:
    """Mean over terms of each term's own share, so that a frequent term counts no more than a rare one.

    >>> macro([True, True, True, False], ["heart", "heart", "heart", "stent"])
    0.5
    """
    if not len(right):
        return 0.0
    sums, counts = _by_group(np.asarray(right, dtype=np.float64), terms)
    return float(np.mean(sums / counts))


def character_error_rate(truths: Sequence[str], answers: Sequence[str]) -> float:
    """Edits (insertions, deletions, substitutions) over the characters of the truths, both normalised.

    Levenshtein 1966; micro-averaged, so it is above 1 where answers are much longer than the truths.

    >>> character_error_rate(["stent", "aorta"], ["stents", "aorta"])
    0.1
    """
    pairs = [(normalized(truth), normalized(answer)) for truth, answer in zip(truths, answers, strict=True)]
    characters = sum(len(truth) for truth, _ in pairs)
    return sum(Levenshtein.distance(*pair) for pair in pairs) / characters if characters else 0.0


def chrf(truths: Sequence[str], answers: Sequence[str]) -> float:
    """chrF2 of the fillings alone, from 0 to 100, by sacrebleu (Popović 2015): F-score of character 1- to 6-grams."""
    if not len(truths):
        return 0.0
    return float(CHRF().corpus_score([*map(normalized, answers)], [[*map(normalized, truths)]]).score)


def interval(
    right: Sequence[float], documents: Sequence[Hashable], *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The share that is right, with its interval by the percentile bootstrap over documents.

    Gaps of one document are not independent, so whole documents are drawn anew (Efron and Tibshirani 1993). Where all
    are right, or none, every sample would be alike: then the interval is the exact binomial one over documents
    (Clopper and Pearson 1934).

    Args:
        right: (gaps,) whether each is right, or the share of runs in which it is.
        documents: (gaps,) the document that each is from.
        resamples: bootstrap samples.
        seed: of the draws.
    """
    hits, counts = _by_group(np.asarray(right, dtype=np.float64), documents)
    value = micro(right)
    if len(counts) == 0:
        low, high = 0.0, 1.0
    elif value in (0.0, 1.0) or len(counts) == 1:
        exact = stats.binomtest(round(value * len(counts)), len(counts)).proportion_ci()
        low, high = float(exact.low), float(exact.high)
    else:
        low, high = _bootstrap(hits, counts, resamples, seed)
    return Estimate(value=value, low=low, high=high, count=len(right))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    documents: Sequence[Hashable],
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """By how much `first` is above `second` on the same gaps, with its interval, and the two-sided p value.

    The p value is that of a permutation test that swaps the two systems' results in whole documents (Fisher 1935;
    Koehn 2004 on why documents): how often chance alone gives a difference as large. With n resamples it is 1 / (n + 1)
    at least. The interval is the bootstrap's over documents.

    Args:
        first: (gaps,) whether the first system is right, or the share of runs in which it is.
        second: (gaps,) the second, on the same gaps.
        documents: (gaps,) the document that each gap is from.
        resamples: permutations, where there are too many to try all.
        seed: of the draws.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    value = float(difference.mean()) if len(difference) else 0.0
    sums, counts = _by_group(difference, documents)
    if len(counts) < 2 or not difference.any():
        return Estimate(value=value, low=value, high=value, count=len(difference)), 1.0
    low, high = _bootstrap(sums, counts, 2000, seed)
    p_value = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        lambda one, other, axis: (one - other).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    ).pvalue
    return Estimate(value=value, low=low, high=high, count=len(difference)), float(p_value)


def errors_removed(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of `second`'s errors that `first` does away with; below 0 where it makes more, 0 where there were none.

    >>> errors_removed([True, True, True, False], [True, True, False, False])
    0.5
    """
    wrong = 1 - micro(second)
    return (wrong - (1 - micro(first))) / wrong if wrong else 0.0


def calibration(
    scores: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, *, bins: int = 10
) -> list[CalibrationBin]:
    """Answers in `bins` ranges of equal width by their probability (Guo et al. 2017); empty ranges are left out."""
    values, hits = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.float64)
    places = np.minimum((values * bins).astype(int), bins - 1)
    return [
        CalibrationBin(
            score=float(values[places == place].mean()),
            accuracy=float(hits[places == place].mean()),
            count=int((places == place).sum()),
        )
        for place in np.unique(places)
    ]


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance of a bin's accuracy from its mean probability, weighted by answers (ECE, Guo et al. 2017).

    >>> calibration_error(calibration([0.9, 0.9, 0.1], [True, False, False]))
    0.3
    """
    total = sum(part.count for part in bins)
    return round(sum(part.count * abs(part.accuracy - part.score) for part in bins) / total, 12) if total else 0.0


def accuracy_at_coverage(
    scores: Sequence[float], right: Sequence[bool], *, points: int = 20
) -> list[tuple[float, float]]:
    """Accuracy of the most probable answers alone, by the share that is answered (El-Yaniv and Wiener 2010).

    >>> accuracy_at_coverage([0.9, 0.2, 0.8, 0.1], [True, False, True, False], points=2)
    [(0.5, 1.0), (1.0, 0.5)]
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    hits = np.asarray(right, dtype=np.float64)[order]
    kept = [max(1, round(len(hits) * point / points)) for point in range(1, points + 1)] if len(hits) else []
    return [(count / len(hits), float(hits[:count].mean())) for count in dict.fromkeys(kept)]


def band(value: int, borders: Sequence[int]) -> str:
    """The name of the band that `value` falls into: below the first border, between two, or from the last on.

    >>> [band(value, [1, 10, 100]) for value in (0, 3, 10, 250)]
    ['0', '1–9', '10–99', '100+']
    """
    if value < borders[0]:
        return _range_name(0, borders[0])
    for low, high in pairwise(borders):
        if value < high:
            return _range_name(low, high)
    return f"{borders[-1]}+"


def _range_name(low: int, high: int) -> str:
    return str(low) if high - low == 1 else f"{low}–{high - 1}"


def _bootstrap(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of sum over count when whole groups are drawn anew."""
    found = stats.bootstrap(
        (sums, counts),
        _ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    ratio: np.ndarray = sums.sum(axis=axis) / counts.sum(axis=axis)
    return ratio


def _by_group(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of `values` and number of them in each group, in the order in which the groups first appear."""
    numbers: dict[Hashable, int] = {}
    places = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    return np.bincount(places, weights=values, minlength=len(numbers)), np.bincount(places, minlength=len(numbers))
