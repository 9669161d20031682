from __future__ import annotations

from types import SimpleNamespace

from transformers import TrainerControl

from t5refine_peft import DelayedEarlyStoppingCallback


def stop_step(losses: list[float], **options) -> int | None:
    """At which evaluation (one a step) training stops."""
    callback, control = DelayedEarlyStoppingCallback(**options), TrainerControl()
    for step, loss in enumerate(losses, start=1):
        state = SimpleNamespace(global_step=step, max_steps=len(losses))
        callback.on_evaluate(None, state, control, metrics={"eval_loss": loss})
        if control.should_training_stop:
            return step
    return None


def test_an_early_plateau_does_not_stop_and_a_late_one_does():
    losses = [3.0] * 8 + [2.0] * 12
    assert stop_step(losses, start_step=0.45, patience=5) == 14
    assert stop_step(losses, start_step=0, patience=5) == 6
    assert stop_step(losses, start_step=18, patience=5) is None


def test_a_gain_below_the_threshold_is_none():
    losses = [3 - 0.0001 * n for n in range(20)]
    assert stop_step(losses, start_step=0, patience=4, threshold=0.001) is not None
    assert stop_step(losses, start_step=0, patience=4, threshold=0.00001) is None


def test_its_state_survives_a_checkpoint():
    callback = DelayedEarlyStoppingCallback(patience=3)
    callback.best, callback.waited = 1.5, 2
    again = DelayedEarlyStoppingCallback.from_state(callback.state())
    assert (again.best, again.waited, again.patience) == (1.5, 2, 3)
