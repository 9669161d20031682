from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from runs import AtEvent, same, train_tiny, weights
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5refine_peft import RefineError
from t5refine_peft.training import trainer
from t5refine_peft.training.callbacks import HealthCallback, ProgressCallback
from t5refine_peft.training.memory import MicroBatches
from t5refine_peft.training.order import LengthGroupedSampler


def spoil(monkeypatch: pytest.MonkeyPatch, *, at: int, training: bool = True, factor: float = float("nan")) -> None:
    """Make the loss of the training (or evaluation) forward of this number NaN or infinite."""
    real, seen = trainer.token_loss, [0]

    def token_loss(model: nn.Module, *arguments: object, **options: int) -> tuple[torch.Tensor, int]:
        loss, count = real(model, *arguments, **options)
        seen[0] += model.training == training
        return loss * factor if seen[0] == at and model.training == training else loss, count

    monkeypatch.setattr(trainer, "token_loss", token_loss)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_documents_and_cause(
    tiny_base, corpus, terms, tmp_path, monkeypatch, factor
):
    spoil(monkeypatch, at=12, factor=factor)  # the second micro-batch of step 6
    with pytest.raises(RefineError) as raised:
        train_tiny(tiny_base, corpus, terms, tmp_path, config={"save_steps": 12})  # each evaluation saves as well
    sentence = str(raised.value)
    assert sentence.startswith("the loss or its gradient is not finite at step 6 (its batch: ")
    assert sentence.split("(its batch: ")[1].split(")", maxsplit=1)[0].count(", ") == 7
    assert "likely the learning rate 0.01 is too high; train anew with a third of it" in sentence
    newest = tmp_path / "runs" / "heart" / "checkpoint-4"
    assert sentence.endswith(f"; {newest} is as it was")
    assert (newest / "trainer_state.json").is_file()
    assert not (tmp_path / "adapters" / "heart").exists()


def test_before_any_update_it_is_not_the_learning_rate(tiny_base, corpus, terms, tmp_path, monkeypatch):
    spoil(monkeypatch, at=1)
    with pytest.raises(RefineError, match=r"step 1 .* broken weights of the base .*; no checkpoint was due yet"):
        train_tiny(tiny_base, corpus, terms, tmp_path)


def test_an_evaluation_that_is_not_finite_stops_too(tiny_base, corpus, terms, tmp_path, monkeypatch):
    spoil(monkeypatch, at=1, training=False)
    with pytest.raises(RefineError, match="eval_loss is not finite at step 4: likely the learning rate"):
        train_tiny(tiny_base, corpus, terms, tmp_path)


class Diverging(TrainerCallback):
    """The last update before an evaluation throws the adapter far away."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 4:
            with torch.no_grad():
                for weight in kwargs["model"].parameters():
                    weight.mul_(1e30 if weight.requires_grad else 1)


def test_a_run_whose_answers_are_no_numbers_is_told_as_any_other(tiny_base, corpus, terms, tmp_path):
    config = {"metric": "term_exact_match"}
    with pytest.raises(RefineError, match="eval_loss is not finite at step 4: likely the learning rate"):
        train_tiny(tiny_base, corpus, terms, tmp_path, config=config, callbacks=[Diverging()])


def test_the_documents_are_those_of_the_batch():
    sampler = LengthGroupedSampler([n % 7 for n in range(20)], batch=8, seed=3)
    seen = [list(sampler)[at : at + 8] for at in (0, 8, 16)]
    sampler.set_epoch(1)
    seen += [list(sampler)[at : at + 8] for at in (0, 8, 16)]
    assert [sampler.of_step(step) for step in range(1, 7)] == seen
    assert all(len(batch) == 8 for batch in seen)


def test_a_run_that_ends_in_an_error_gives_the_terminal_back(tiny_base, corpus, terms, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, at=12)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with pytest.raises(RefineError):
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[ProgressCallback()])
    told = capsys.readouterr().err
    assert told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l")  # the cursor went, and came back


def test_a_quantised_base_is_suspected_first(tmp_path):
    model = nn.ModuleDict({"frozen": nn.Module(), "trained": nn.Linear(2, 2)})
    model["frozen"].weight = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    model["trained"].weight.grad = torch.full((2, 2), float("inf"))
    callback, state = HealthCallback(), TrainerState(save_steps=4)
    arguments = TrainingArguments(str(tmp_path))
    callback.on_train_begin(arguments, state, TrainerControl(), model=model)
    with pytest.raises(RefineError, match="likely a bad quantisation of the base"):
        callback.on_pre_optimizer_step(arguments, state, TrainerControl(), model=model)


def out_of_memory(monkeypatch: pytest.MonkeyPatch, *, rows: int, in_backward: bool) -> None:
    """Fail as a GPU does for micro-batches of more than `rows` passages, in forward or with half the gradients made."""
    real = trainer.token_loss
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def token_loss(model: nn.Module, inputs: dict[str, torch.Tensor], base: object, **options: int) -> object:
        too_much = len(inputs["labels"]) > rows
        if too_much and not (in_backward and model.training):
            raise error
        if too_much:
            # The first block's gradients come last: by then those of the others have been added.
            first = next(w for name, w in model.named_parameters() if w.requires_grad and "encoder.block.0" in name)

            def fail(_: torch.Tensor) -> None:
                handle.remove()
                raise error

            handle = first.register_hook(fail)
        return real(model, inputs, base, **options)

    monkeypatch.setattr(trainer, "token_loss", token_loss)


@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    tiny_base, corpus, terms, tmp_path, monkeypatch, caplog, in_backward
):
    """Dropout draws the masks that it draws for small micro-batches from the start."""
    train_tiny(tiny_base, corpus, terms, tmp_path / "small", config={"micro_batch": 2})
    out_of_memory(monkeypatch, rows=2, in_backward=in_backward)
    caplog.set_level(logging.WARNING, logger="t5refine_peft")
    train_tiny(tiny_base, corpus, terms, tmp_path / "halved", config={"micro_batch": 8})
    told = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert told[:2] == [
        "out of memory at step 1: micro-batch 8 -> 4 passages; the batch and its order stay as they were",
        "out of memory at step 1: micro-batch 4 -> 2 passages; the batch and its order stay as they were",
    ]
    assert told[2].startswith("out of memory at step 4: evaluation batch 5 -> 2")
    small, halved = weights(tmp_path / "small"), weights(tmp_path / "halved")
    for name, expected in small.items():
        distance = (halved[name].float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-6)
        assert distance < 0.01, name  # bf16 on disk


def test_a_run_whose_memory_ran_out_resumes_to_the_same_adapter(tiny_base, corpus, terms, tmp_path, monkeypatch):
    """On a GPU that has more to spare now, say: the batches are still cut as they were."""
    with monkeypatch.context() as patch:
        out_of_memory(patch, rows=2, in_backward=False)
        train_tiny(tiny_base, corpus, terms, tmp_path / "whole")
    with monkeypatch.context() as patch:
        out_of_memory(patch, rows=2, in_backward=False)
        with pytest.raises(ZeroDivisionError):
            train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[AtEvent("on_step_end", 7, lambda: 1 // 0)])
    train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path))


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def a_batch(passages: int) -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.ones(passages, 7), "labels": torch.zeros(passages, 5)}


def test_a_budget_of_tokens_is_halved_too(caplog):
    sizes = MicroBatches(train=4, evaluation=8, max_tokens=24)
    assert [len(part["labels"]) for part in sizes.split(a_batch(4))] == [2, 2]
    sizes.halve(FULL, step=3)
    assert "micro-batch 2 -> 1 passages of at most 12 tokens together; the batch" in caplog.text
    assert [len(part["labels"]) for part in sizes.split(a_batch(4))] == [1, 1, 1, 1]
    assert [len(part["labels"]) for part in sizes.split(a_batch(4), evaluation=True)] == [2, 2]


@pytest.mark.parametrize("max_tokens", [None, 10**6])
def test_limits_far_above_the_batch_are_not_halved_in_vain(max_tokens):
    """Each retry is of smaller parts than the one that failed."""
    sizes = MicroBatches(train=64, evaluation=64, max_tokens=max_tokens)
    tried = []
    for _ in range(3):
        tried.append(len(next(sizes.split(a_batch(5)))["labels"]))
        if tried[-1] > 1:
            sizes.halve(FULL, step=1)
    assert tried == [5, 2, 1]


def test_other_errors_pass_and_one_passage_that_does_not_fit_is_told():
    sizes = MicroBatches(train=2, evaluation=4, max_tokens=11)
    with pytest.raises(RuntimeError, match="shape"):
        sizes.halve(RuntimeError("shape mismatch"), step=1)
    next(sizes.split(a_batch(4)))  # the budget lets one passage through at a time already
    with pytest.raises(RefineError, match="out of memory at step 9 with one passage at a time: take a lower max_pass"):
        sizes.halve(FULL, step=9)
    sizes = MicroBatches(train=2, evaluation=4)
    next(sizes.split(a_batch(4)))
    with pytest.raises(RefineError, match="with 2 passages a process: set micro_batch to 1"):
        sizes.halve(FULL, step=1, processes=2)
    sizes.halve(FULL, step=1)
    assert [len(part["labels"]) for part in sizes.split(a_batch(3))] == [1, 1, 1]
