"""Scores that can be trusted: of the answers with a score of 0.9, about nine in ten are right.

One temperature divides the model's logits (Guo et al. 2017, On Calibration of Modern Neural Networks). It is chosen so
that the probability of a whole answer says best whether that answer is right, since whole answers are what is scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEMPERATURES: tuple[float, ...] = tuple(float(value) for value in np.geomspace(0.25, 8.0, 61))
"""Those that answers are scored at, 6% apart."""
_BETWEEN = 10
"""Temperatures that are tried for each of them: in between, log-probabilities are interpolated."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far scores can be trusted, measured on answers that did not choose the temperature.

    Attributes:
        temperature: what the logits are divided by.
        fitted_gaps: number of answers that chose it.
        gaps: number of answers measured.
        error_before: expected calibration error of the model's own probabilities, from 0 to 1.
        error_after: the same at the temperature.
        curve: for each tenth of the scores, at the temperature: mean score, share that is right, number of answers.
    """

    temperature: float
    fitted_gaps: int
    gaps: int
    error_before: float
    error_after: float
    curve: tuple[tuple[float, float, int], ...]


def fit_temperature(log_probabilities: np.ndarray, right: np.ndarray) -> float:
    """The temperature at which the answers' probabilities say best which of them are right.

    Args:
        log_probabilities: (answers, temperatures) natural logarithms, at each of `TEMPERATURES`.
        right: (answers,) bool.

    Returns:
        The one with the least log-loss, to 0.6%; 1 where there is no answer.
    """
    if not len(right):
        return 1.0
    places = np.arange((len(TEMPERATURES) - 1) * _BETWEEN + 1) / _BETWEEN
    known = np.arange(len(TEMPERATURES))
    losses = np.zeros(len(places))
    for row, hit in zip(np.minimum(log_probabilities.astype(np.float64), -1e-9), right, strict=True):
        logs = np.interp(places, known, row)
        losses -= logs if hit else np.log(-np.expm1(logs))
    return float(np.exp(np.interp(places[int(np.argmin(losses))], known, np.log(TEMPERATURES))))
