"""Training runs for the tests, in this process or in one of their own that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from t5refine_peft import AdapterConfig, TrainingConfig, TrainResult, train_adapter

CONFIG = {
    "adapter": AdapterConfig(rank=4, dropout=0.1),
    "max_steps": 12,
    "eval_steps": 4,
    "save_steps": 3,
    "batch": 8,
    "micro_batch": 4,
    "learning_rate": 1e-2,
    "device": "cpu",
    "precision": "float32",
    "validation_share": 0.2,
    "test_share": 0.2,
    "start_step": 0.9,
}


def train_tiny(
    base: Path, corpus: list[str], terms: list[str], where: Path, *, domain: str = "heart", **options: Any
) -> TrainResult:
    """A run of twelve steps on the tiny base, with dropout, so that random states matter."""
    config = TrainingConfig(**{**CONFIG, **options.pop("config", {})})
    places = {"adapters_dir": where / "adapters", "runs_dir": where / "runs"}
    return train_adapter(corpus, domain=domain, glossary=terms, base=base, config=config, **{**places, **options})


def weights(where: Path, domain: str = "heart") -> dict[str, torch.Tensor]:
    return load_file(where / "adapters" / domain / "adapter_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class AtEvent(TrainerCallback):
    """Does something at an event of a step; for a signal to this process, or an error."""

    def __init__(self, event: str, step: int, action: Callable[[], None]) -> None:
        def act(_args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
            if state.global_step == step:
                action()

        setattr(self, event, act)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(number: int) -> dict[str, Any]:
    """Options of a run that is killed after backward, before the weights of step `number` change."""
    return {"callbacks": [AtEvent("on_pre_optimizer_step", number - 1, die)]}


def kill_in_evaluation(batch: int) -> dict[str, Any]:
    """Kill this process in the forward of the evaluation batch of this number."""
    from t5refine_peft.training import trainer

    real, seen = trainer.token_loss, [0]

    def token_loss(model: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        seen[0] += not model.training
        if seen[0] == batch:
            die()
        return real(model, *arguments, **options)

    trainer.token_loss = token_loss
    return {}


def kill_in_flush(number: int) -> dict[str, Any]:
    """Kill this process when it has written a file, but not yet flushed it to the disk, for the `number`th time."""
    real, seen = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        seen[0] += 1
        if seen[0] == number:
            die()
        real(descriptor)

    os.fsync = fsync
    return {}


def _child(kill: tuple[Callable[[int], dict[str, Any]], int], arguments: tuple[Any, ...]) -> None:
    how, number = kill
    train_tiny(*arguments, **how(number))


def run_and_kill(kill: tuple[Callable[[int], dict[str, Any]], int], *arguments: Any) -> int:
    """The exit code of a run in a process of its own that kills itself at the given moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["t5refine_peft.training.train"])
    process = context.Process(target=_child, args=(kill, arguments))
    process.start()
    process.join(120)
    return process.exitcode or 0
