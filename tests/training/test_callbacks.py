"""All callbacks in a Seq2SeqTrainer that knows nothing of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from runs import AtEvent
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Seq2SeqTrainingArguments

from t5refine_peft import RefineError
from t5refine_peft.training.callbacks import (
    DelayedEarlyStoppingCallback,
    HealthCallback,
    InterruptCallback,
    ProgressCallback,
)

HANDLER = signal.getsignal(signal.SIGINT)
"""What Ctrl+C does where no training is; a run in the background ignores it."""


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row[:4].clone()} for row in ids]


def plain_trainer(tiny_base: Path, where: Path, *callbacks: object, **options: object) -> Seq2SeqTrainer:
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(tiny_base), LoraConfig(task_type="SEQ_2_SEQ_LM", r=2))
    usual = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_steps": 2,
        "metric_for_best_model": "loss",
        "load_best_model_at_end": True,
        "logging_steps": 1,
    }
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(where),
        max_steps=8,
        per_device_train_batch_size=4,
        eval_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{**usual, **options},
    )
    return Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows(16), eval_dataset=rows(4), callbacks=list(callbacks)
    )


def close_all(trainer: Seq2SeqTrainer) -> None:
    """An error ends a plain Trainer without an event."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, InterruptCallback | ProgressCallback):
            callback.close()


def ours(**options: object) -> list[object]:
    return [
        DelayedEarlyStoppingCallback(**{"start_step": 0.3, "patience": 5, **options}),
        InterruptCallback(),
        ProgressCallback(label="plain"),
        HealthCallback(),
    ]


def test_they_train_stop_tell_and_resume_in_a_plain_trainer(tiny_base, tmp_path, capsys):
    stopping = {"threshold": 9.0, "patience": 1, "window": 1}
    trainer = plain_trainer(tiny_base, tmp_path, *ours(**stopping))
    trainer.train()
    assert trainer.state.global_step == 6  # held until step 3, then patience and window
    phases = [entry["stopping_phase"] for entry in trainer.state.log_history if "stopping_phase" in entry]
    assert phases == ["early", "late", "late"]
    told = capsys.readouterr().err.splitlines()
    steps = [line for line in told if line.startswith("plain: step 3/8 (37.5%), epoch 0.75, loss ")]
    assert len(steps) == 1
    assert all(word in steps[0] for word in (", rate ", " GB, early, 0:00:0", " passed, 0:00:0", " left"))
    assert any("vs best" in line and "verdict" in line for line in told)
    assert any("no trend" in line or "evaluations without betterment" in line for line in told)

    kept = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert kept["DelayedEarlyStoppingCallback"]["attributes"]["waited"] == 1
    assert kept["ProgressCallback"]["attributes"]["seconds_before"] > 0
    for flag in (True, False):  # the Trainer's own way to bring callbacks' states back is off unless it is asked for
        again = plain_trainer(tiny_base, tmp_path, *ours(**stopping), restore_callback_states_from_checkpoint=flag)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert again.state.global_step == 6
        assert "plain: step 5/8" in capsys.readouterr().err


def test_a_second_training_begins_with_nothing_of_the_first(tiny_base, tmp_path):
    trainer = plain_trainer(tiny_base, tmp_path, *ours(threshold=9.0, patience=3, window=0, start_step=0))
    trainer.train()
    assert trainer.state.global_step == 8  # the first of four evaluations is the best
    trainer.train()
    assert trainer.state.global_step == 8


def test_ctrl_c_in_a_plain_trainer_keeps_checkpoint_and_best(tiny_base, tmp_path):
    pressed = AtEvent("on_step_begin", 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    trainer = plain_trainer(tiny_base, tmp_path, *ours(), pressed)
    with pytest.raises(KeyboardInterrupt, match=r"after step 5 of 8: .*checkpoint-5 is complete, the best weights .*4"):
        trainer.train()
    assert json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())["global_step"] == 5
    PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(tiny_base), tmp_path / "best")
    assert signal.getsignal(signal.SIGINT) is HANDLER
    plain_trainer(tiny_base, tmp_path, *ours()).train(resume_from_checkpoint=True)


def test_ctrl_c_keeps_the_newest_where_the_trainer_would_leave_the_best_alone(tiny_base, tmp_path):
    pressed = AtEvent("on_step_begin", 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    trainer = plain_trainer(tiny_base, tmp_path, *ours(), pressed, save_total_limit=1, save_only_model=True)
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint-5 is complete, the best weights so far \(checkpoint-4\)"):
        trainer.train()
    assert not (tmp_path / "checkpoint-4" / "optimizer.pt").exists()
    assert (tmp_path / "checkpoint-5" / "optimizer.pt").is_file()  # else it could not be gone on from
    assert (trainer.args.save_total_limit, trainer.args.save_only_model) == (1, True)
    plain_trainer(tiny_base, tmp_path, *ours(), save_total_limit=1).train(resume_from_checkpoint=True)


def test_ctrl_c_does_not_call_the_newest_weights_the_best(tiny_base, tmp_path):
    pressed = AtEvent("on_step_begin", 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    trainer = plain_trainer(tiny_base, tmp_path, *ours(), pressed, save_steps=3, load_best_model_at_end=False)
    with pytest.raises(KeyboardInterrupt, match="the newest weights, since step 4, the best, was not saved, are in"):
        trainer.train()
    best, newest = (tmp_path / name / "adapter_model.safetensors" for name in ("best", "checkpoint-5"))
    assert best.read_bytes() == newest.read_bytes()


def test_ctrl_c_saves_though_nobody_reads_what_is_told(tiny_base, tmp_path, monkeypatch):
    def gone(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    def interrupted() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", gone)
            signal.raise_signal(signal.SIGTERM)

    trainer = plain_trainer(tiny_base, tmp_path, *ours(), AtEvent("on_step_begin", 4, interrupted))
    with pytest.raises(KeyboardInterrupt, match="checkpoint-5 is complete"):
        trainer.train()


def test_ctrl_c_after_the_last_step_claims_no_checkpoint_that_is_not_there(tiny_base, tmp_path, caplog):
    late = AtEvent("on_epoch_end", 8, lambda: os.kill(os.getpid(), signal.SIGINT))
    trainer = plain_trainer(
        tiny_base, tmp_path, *ours(), late, save_strategy="no", load_best_model_at_end=False, metric_for_best_model=None
    )
    trainer.train()
    assert "training had ended when it was interrupted; its weights are in memory alone, so it goes on" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_ctrl_break_of_windows_is_heeded_as_ctrl_c(tiny_base, tmp_path, monkeypatch):
    """Windows has SIGBREAK and can't raise SIGTERM from outside; any other signal stands for it here."""
    number = signal.SIGINT if sys.platform == "win32" else signal.SIGUSR1
    monkeypatch.setattr(signal, "SIGBREAK", number, raising=False)
    pressed = AtEvent("on_step_begin", 4, lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt, match="checkpoint-5 is complete"):
        plain_trainer(tiny_base, tmp_path, *ours(), pressed).train()


def test_a_second_ctrl_c_stops_at_once(tiny_base, tmp_path):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    trainer = plain_trainer(tiny_base, tmp_path, *ours(), AtEvent("on_step_begin", 4, twice))
    with pytest.raises(KeyboardInterrupt, match="stopped at once; the last complete checkpoint is as it was"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert not (tmp_path / "checkpoint-5").exists()
    assert signal.getsignal(signal.SIGINT) is HANDLER


def test_ctrl_c_in_an_evaluation_is_heeded_after_it(tiny_base, tmp_path):
    pressed = AtEvent("on_prediction_step", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer = plain_trainer(tiny_base, tmp_path, *ours(), pressed)
    trainer.callback_handler.callbacks[-1].on_prediction_step, act = (
        lambda *_, **__: None,
        trainer.callback_handler.callbacks[-1].on_prediction_step,
    )
    seen: list[int] = []

    def once(args: object, state: object, control: object, **kwargs: object) -> None:
        if not seen and state.global_step == 4:
            seen.append(4)
            act(args, state, control, **kwargs)

    trainer.callback_handler.callbacks[-1].on_prediction_step = once
    with pytest.raises(KeyboardInterrupt, match="interrupted after step 4 of 8"):
        trainer.train()
    history = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert history[-2]["step"] == 4
    assert "eval_loss" in history[-2]


def test_nan_in_a_plain_trainer_stops_before_the_weights_change(tiny_base, tmp_path):
    def spoil() -> None:
        next(weight for weight in trainer.model.parameters() if weight.grad is not None).grad.fill_(float("nan"))

    trainer = plain_trainer(tiny_base, tmp_path, AtEvent("on_pre_optimizer_step", 5, spoil), *ours())
    with pytest.raises(RefineError, match="not finite at step 6: likely the learning rate"):
        trainer.train()
    close_all(trainer)
    assert signal.getsignal(signal.SIGINT) is HANDLER
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_a_loss_that_is_nan_with_gradients_of_zero_is_found(tiny_base, tmp_path):
    trainer = plain_trainer(tiny_base, tmp_path, *ours(), eval_strategy="no", load_best_model_at_end=False)
    for row in trainer.train_dataset:
        row["labels"] = torch.full((4,), -100)
    with pytest.raises(RefineError, match="the loss is not finite at step 1: likely the learning rate"):
        trainer.train()
    close_all(trainer)


def test_on_a_terminal_one_line_is_kept_up_to_date(tiny_base, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    plain_trainer(tiny_base, tmp_path, *ours(), include_num_input_tokens_seen="all").train()
    told = capsys.readouterr().err
    assert "\x1b[?25l" in told  # the cursor goes
    assert told.rstrip().endswith(("\x1b[?25h", "\x1b[2K"))  # and comes back
    assert told.count("vs best") == 1
    assert "tokens/s" in told
