from __future__ import annotations

import numpy as np
import pytest

from t5refine_peft.evaluation.metrics import calibration, calibration_error
from t5refine_peft.restoration.calibration import TEMPERATURES, fit_temperature


def logits_and_truth(gaps: int, *, sharpened: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits `sharpened` times too sure of 50 tokens, and tokens drawn by the honest ones."""
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(gaps, 50)) * 2.5
    odds = np.exp(honest)
    truth = np.array([rng.choice(50, p=row / row.sum()) for row in odds])
    return honest * sharpened, truth


def log_probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits / temperature
    return (
        scaled
        - np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1, keepdims=True))
        - scaled.max(1, keepdims=True)
    )


@pytest.mark.parametrize("sharpened", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_too_much_or_too_little_confidence(sharpened):
    logits, truth = logits_and_truth(6000, sharpened=sharpened)
    answers = logits.argmax(1)
    right = answers == truth
    logs = np.stack([log_probabilities(logits, t)[np.arange(len(answers)), answers] for t in TEMPERATURES], axis=1)
    temperature = fit_temperature(logs, right)
    assert temperature == pytest.approx(sharpened, rel=0.05)
    honest = np.exp(log_probabilities(logits, temperature)[np.arange(len(answers)), answers])
    assert calibration_error(calibration(honest, right)) < 0.03
    if sharpened != 1.0:
        raw = np.exp(log_probabilities(logits, 1.0)[np.arange(len(answers)), answers])
        assert calibration_error(calibration(raw, right)) > 0.1


def test_the_error_by_hand():
    scores = np.array([0.95, 0.91, 0.15, 0.12, 1.0])
    right = np.array([True, False, False, False, True])
    curve = calibration(scores, right)
    assert [part.count for part in curve] == [2, 3]
    by_hand = 2 / 5 * abs(0.135 - 0) + 3 / 5 * abs((0.95 + 0.91 + 1.0) / 3 - 2 / 3)
    assert calibration_error(calibration(scores, right)) == pytest.approx(by_hand)


def test_without_answers_nothing_is_changed():
    assert fit_temperature(np.zeros((0, len(TEMPERATURES))), np.zeros(0, dtype=bool)) == 1.0
    assert calibration_error(calibration(np.zeros(0), np.zeros(0, dtype=bool))) == 0.0
