from __future__ import annotations

import json

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from t5refine_peft import ProgressCallback
from t5refine_peft.training import progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_time_left_comes_from_the_last_steps_and_the_pauses_between_them(tmp_path, monkeypatch, capsys):
    clock, control = Clock(), TrainerControl()
    monkeypatch.setattr(progress, "time", clock)
    arguments = TrainingArguments(str(tmp_path), metric_for_best_model="eval_loss", greater_is_better=False)
    # A run that is resumed at step 1000 of 2000 after two hours: the two hours tell nothing of its rate.
    callback = ProgressCallback.from_state({"args": {"label": "x"}, "attributes": {"seconds_before": 7200.0}})
    state = TrainerState(max_steps=2000, global_step=1000, eval_steps=100, num_input_tokens_seen=10**6)
    assert "early" not in callback.line(state)  # nothing judges this run
    state.stateful_callbacks = {"DelayedEarlyStoppingCallback": {}}
    assert ", early, " in callback.line(state)
    callback.on_train_begin(arguments, state, control)
    assert "time left unknown" in callback.line(state)
    for _ in range(100):
        clock.now += 2.0
        state.global_step += 1
        state.num_input_tokens_seen += 500
        callback.on_step_end(arguments, state, control)
    assert callback.line(state).endswith("2:03:20 passed, 0:30:00 left")
    clock.now += 50.0
    state.log_history += [{"step": 1000, "eval_loss": 2.0}, {"step": 1100, "eval_loss": 1.5}]
    state.log_history.append({"step": 1100, "stopping_phase": "middle", "stopping_reason": "loss 1.5 is the best"})
    callback.on_evaluate(arguments, state, control, metrics={"eval_loss": 1.5})
    clock.now += 10.0
    callback.on_save(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"loss": 1.25, "learning_rate": 5e-4})
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "loss 1.250" in line)
    assert "step 1100/2000 (55.0%)" in line
    assert "rate 0.0005, 250 tokens/s" in line
    assert ", middle, " in line
    assert line.endswith("2:04:20 passed, 0:39:00 left")  # 900 steps of 2 s, 9 pauses of 60 s
    state.stateful_callbacks["ProgressCallback"] = json.loads(json.dumps(callback.state()))
    resumed = ProgressCallback(label="x")  # in a Trainer that brings no states back by itself
    resumed.on_train_begin(arguments, state, control)
    assert resumed.line(state).endswith("2:04:20 passed, 0:39:00 left")
    clock.now += 22.0  # a first step is slow: one of the fifty that are looked back on
    resumed.on_step_end(arguments, state, control)
    assert resumed.line(state).endswith("2:04:42 passed, 0:45:00 left")


def test_saves_without_evaluations_are_shared_out_once(tmp_path, monkeypatch):
    clock, control = Clock(), TrainerControl()
    monkeypatch.setattr(progress, "time", clock)
    arguments, state = TrainingArguments(str(tmp_path)), TrainerState(max_steps=2000, eval_steps=500)
    callback = ProgressCallback()
    callback.on_train_begin(arguments, state, control)
    for state.global_step in range(1, 1001):
        clock.now += 2.0
        callback.on_step_end(arguments, state, control)
        if state.global_step % 10 == 0:
            clock.now += 5.0
            callback.on_save(arguments, state, control)
    assert callback.line(state).endswith("0:41:40 passed, 0:41:40 left")


def test_what_it_was_given_survives_a_checkpoint():
    callback = ProgressCallback(label="x", live=False)
    assert ProgressCallback.from_state(json.loads(json.dumps(callback.state())))._may_live is False


def test_evaluations_are_a_table_with_the_change_against_the_best(tmp_path, capsys):
    callback, control = ProgressCallback(), TrainerControl()
    arguments = TrainingArguments(str(tmp_path), metric_for_best_model="accuracy", greater_is_better=True)
    state = TrainerState(max_steps=30)
    for step, accuracy in ((10, 0.5), (20, 0.75), (30, 0.625)):
        state.global_step = step
        state.log_history.append({"step": step, "eval_accuracy": accuracy})
        callback.on_evaluate(arguments, state, control, metrics={"eval_accuracy": accuracy})
    header, *rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert header == ["step", "epoch", "eval_accuracy", "vs", "best", "verdict"]
    assert rows == [
        ["10", "0.00", "0.5000"],
        ["20", "0.00", "0.7500", "+0.2500"],
        ["30", "0.00", "0.6250", "-0.1250"],
    ]


def test_a_narrow_terminal_shows_the_whole_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    callback, control = ProgressCallback(label="cardiology"), TrainerControl()
    arguments, state = TrainingArguments(str(tmp_path)), TrainerState(max_steps=2000, global_step=1000, epoch=12.5)
    callback.on_train_begin(arguments, state, control)
    callback.on_step_end(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"loss": 1.25, "learning_rate": 5e-4})
    callback.close()
    told = capsys.readouterr().err
    assert "step 1000/2000 (50.0%), epoch 12.50, loss 1.250, rate 0.0005, " in told
    assert " left" in told.split("loss 1.250")[-1]
    assert "…" not in told


@pytest.mark.parametrize("main", [True, False])
def test_one_process_of_several_tells(tmp_path, capsys, main):
    state = TrainerState(max_steps=3, is_world_process_zero=main)
    ProgressCallback().on_log(TrainingArguments(str(tmp_path)), state, TrainerControl(), logs={"loss": 1.0})
    assert bool(capsys.readouterr().err) is main
