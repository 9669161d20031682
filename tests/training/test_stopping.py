from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from t5refine_peft import DelayedEarlyStoppingCallback, RefineError

CURVE = json.loads((Path(__file__).parent / "loss_curve.json").read_text())


def recorded_curve() -> tuple[list[float], list[tuple[int, int, bool]]]:
    """The recorded losses with plateaus that are level but for their noise, and each stretch's begin, end and kind."""
    losses = np.array(CURVE["losses"])
    stretches, at = [], 0
    for stretch in CURVE["stretches"]:
        part = slice(at, at + stretch["evaluations"])
        if stretch["rests"]:
            numbers = np.arange(stretch["evaluations"])
            creeping = np.polyval(np.polyfit(numbers, losses[part], 2), numbers)
            losses[part] -= creeping - creeping[0]
            losses[part.stop :] -= creeping[-1] - creeping[0]  # so that the fall after it is the recorded one
        stretches.append((part.start, part.stop, stretch["rests"]))
        at = part.stop
    return losses.tolist(), stretches


def judge(
    values: list[float], callback: DelayedEarlyStoppingCallback, *, steps: int = 1, max_steps: int | None = None
) -> tuple[int | None, list[str]]:
    """At which evaluation (counted from 1, one each `steps`) training stops, and the phases until then."""
    state, control = TrainerState(max_steps=max_steps or steps * len(values)), TrainerControl()
    for number, value in enumerate(values, start=1):
        state.global_step = number * steps
        callback.on_evaluate(None, state, control, metrics={f"eval_{callback.metric}": value})
        if control.should_training_stop:
            break
    else:
        number = None
    return number, [entry["stopping_phase"] for entry in state.log_history]


def stock_stop(values: list[float], *, patience: int, threshold: float, tmp_path: Path) -> int | None:
    """The same with Hugging Face's callback."""
    callback, control = EarlyStoppingCallback(patience, threshold), TrainerControl()
    arguments = TrainingArguments(str(tmp_path), metric_for_best_model="eval_loss", greater_is_better=False)
    state = TrainerState()
    for number, value in enumerate(values, start=1):
        callback.on_evaluate(arguments, state, control, metrics={"eval_loss": value})
        if state.best_metric is None or value < state.best_metric:
            state.best_metric = value
        if control.should_training_stop:
            return number
    return None


def test_a_recorded_run_with_three_false_plateaus_is_followed_to_its_end(tmp_path: Path):
    losses, stretches = recorded_curve()
    every = CURVE["steps_between_evaluations"]
    callback = DelayedEarlyStoppingCallback(start_step=0.3, patience=5, threshold=0.001)
    whole = callback.patience + callback.window
    first, *others, last = [(start, end) for start, end, rests in stretches if rests]
    assert first[1] < 0.3 * len(losses)
    assert first[1] - first[0] > whole
    assert [end - start for start, end in others] == [7, 7]
    assert whole == 8

    stock = stock_stop(losses, patience=5, threshold=0.001, tmp_path=tmp_path)
    assert first[0] < stock <= first[1]

    stopped, phases = judge(losses, callback, steps=every)
    assert last[0] + callback.patience < stopped <= last[0] + whole + 1
    assert losses[stopped - 1] < losses[stock - 1] - 1.0
    assert phases[: first[1]] == ["early"] * first[1]
    assert set(phases) == {"early", "middle", "late"}
    assert "late" in phases[: others[0][1]]
    assert phases[-1] == "late"


@pytest.mark.parametrize("length", [7, 8])
def test_a_plateau_is_borne_if_it_is_shorter_than_patience_and_window(length):
    falls = [3.0 - 0.1 * n for n in range(10)]
    losses = [*falls, *[falls[-1]] * length, *[falls[-1] - 0.1 * n for n in range(1, 20)]]
    stopped, _ = judge(losses, DelayedEarlyStoppingCallback(start_step=0, patience=5, window=3))
    assert stopped == (None if length == 7 else 18)


def test_noise_alone_stops_soon():
    stops = []
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(2.0, 0.01, size=200)
        stopped, _ = judge(noise.tolist(), DelayedEarlyStoppingCallback(start_step=0))
        assert stopped is not None
        stops.append(stopped)
    assert np.median(stops) < 25
    assert max(stops) < 100


def test_a_slow_decline_that_a_lucky_evaluation_hides_is_followed():
    decline = [2.0 - 0.004 * n for n in range(60)]
    lucky = [2.0, 1.90, *decline]  # bettered by the decline only 25 evaluations later
    stopped, phases = judge(lucky, DelayedEarlyStoppingCallback(start_step=0))
    assert stopped is None
    assert phases.count("late") > 10
    assert judge(lucky, DelayedEarlyStoppingCallback(start_step=0, window=0))[0] == 7


def test_a_loss_that_rose_and_recovers_is_followed():
    hump = [2.97, 2.91, 3.10, 3.28, 3.33, 3.27, 3.21, 3.16, 3.10, 3.02]  # a run whose rate was too high for a while
    recovers = [*hump, 2.95, 2.88, 2.80, 2.75]
    stopped, phases = judge(recovers, DelayedEarlyStoppingCallback(start_step=0))
    assert stopped is None
    assert phases[9] == "late"
    never_back = [*hump[:5], *(3.3 - 0.001 * n for n in range(20))]  # falls, but to no best within patience
    assert judge(never_back, DelayedEarlyStoppingCallback(start_step=0))[0] is not None


def test_nothing_is_judged_before_the_start_by_share_or_by_steps():
    flat = [2.0] * 40
    for start in (0.5, 20):
        stopped, phases = judge(flat, DelayedEarlyStoppingCallback(start_step=start, patience=3, window=2))
        assert phases[:19] == ["early"] * 19
        assert stopped == 24
    assert judge(flat, DelayedEarlyStoppingCallback.predecessor(), steps=100, max_steps=7000)[0] is None
    stopped, _ = judge([2.0] * 80, DelayedEarlyStoppingCallback.predecessor(), steps=100, max_steps=8000)
    assert stopped == 67  # step 6000, then patience and window


def test_a_threshold_is_absolute_or_relative():
    halving = [0.004 * 0.9**n for n in range(30)]
    assert judge(halving, DelayedEarlyStoppingCallback(start_step=0, threshold=0.001))[0] is not None
    relative = DelayedEarlyStoppingCallback(start_step=0, threshold=0.05, relative=True)
    assert judge(halving, relative)[0] is None


def test_any_metric_can_be_judged_and_better_may_mean_higher():
    climbs = [0.02 * n for n in range(20)] + [0.4] * 20
    for name in ("term_exact_match", "eval_term_exact_match"):
        callback = DelayedEarlyStoppingCallback(start_step=0, metric=name)
        assert judge(climbs, callback)[0] == 29
    assert judge([-v for v in climbs], DelayedEarlyStoppingCallback(start_step=0, greater_is_better=False))[0] == 29
    state, control = TrainerState(max_steps=10), TrainerControl()
    DelayedEarlyStoppingCallback().on_evaluate(None, state, control, metrics={"eval_other_loss": 1.0})
    assert state.log_history == []


def test_nan_never_counts_as_better():
    stopped, _ = judge([2.0, *[float("nan")] * 20], DelayedEarlyStoppingCallback(start_step=0))
    assert stopped == 9


@pytest.mark.parametrize("first", [float("nan"), float("inf")])
@pytest.mark.parametrize("relative", [False, True])
def test_a_first_value_that_is_not_finite_is_no_best_to_wait_for(first, relative, caplog):
    caplog.set_level(logging.INFO, logger="t5refine_peft")
    falls = [first, *(3.0 - 0.1 * n for n in range(20))]
    assert judge(falls, DelayedEarlyStoppingCallback(start_step=0, relative=relative))[0] is None
    assert "watched: 1 of 5 evaluations without betterment; no finite loss yet" in caplog.text
    assert judge([first] * 20, DelayedEarlyStoppingCallback(start_step=0, relative=relative))[0] == 8


def test_each_verdict_is_logged_with_its_reason(caplog):
    caplog.set_level(logging.INFO, logger="t5refine_peft")
    judge([2.0] * 40, DelayedEarlyStoppingCallback(start_step=10))
    assert "held until step 10" in caplog.text
    assert "watched: 2 of 5 evaluations without betterment; best loss 2" in caplog.text
    assert "the trend is watched for 3 more evaluations" in caplog.text
    assert "8 evaluations without betterment and no trend, +0 ± 0 an evaluation" in caplog.text


def test_its_state_survives_a_checkpoint():
    values = [2.0, 1.5, 1.6, 1.7, 1.6]
    callback = DelayedEarlyStoppingCallback(start_step=0, patience=3, window=1, metric="accuracy", relative=True)
    judge(values, callback)
    again = DelayedEarlyStoppingCallback.from_state(json.loads(json.dumps(callback.state())))
    assert again.__dict__ == callback.__dict__
    assert (again.best, again.waited, again.recent) == (-2.0, 4, [-1.5, -1.6, -1.7, -1.6])


def test_all_faults_are_told_at_once():
    with pytest.raises(RefineError, match="patience must be at least 1, found 0; window must be at least 0, found -1"):
        DelayedEarlyStoppingCallback(patience=0, window=-1)
