"""Ctrl+C and SIGTERM without loss: finish the step, save, say how to go on."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5refine_peft.storage import atomic_directory

logger = logging.getLogger(__name__)

BEST_DIRECTORY = "best"
EXIT_CODE = 130
"""What a shell reports for a program that was ended by Ctrl+C."""

_Handler = Callable[[int, FrameType | None], Any] | int | None
_WEIGHTS = ("adapter_*", "model*.safetensors*", "config.json", "generation_config.json")


@contextmanager
def told_interruption(words: str) -> Iterator[None]:
    """Within this context the signals of `InterruptCallback` raise `KeyboardInterrupt(words)` at once: before and after
    training there is nothing to save. In another thread than the main one it does nothing."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(words)

    former = _take_signals(handle)
    try:
        yield
    finally:
        _give_back(former)


def _signals() -> list[int]:
    """SIGBREAK is there on Windows alone."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


def _take_signals(handle: Callable[[int, FrameType | None], None]) -> dict[int, _Handler]:
    """Have `handle` called; gives whoever was called before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handle) for number in _signals()}


def _give_back(former: dict[int, _Handler]) -> None:
    while former:
        number, handler = former.popitem()
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python


class InterruptCallback(TrainerCallback):  # type: ignore[misc]
    """The first Ctrl+C (or SIGTERM, or Ctrl+Break on Windows) lets the step end, writes a whole checkpoint and the best
    weights so far, and ends the training with a `KeyboardInterrupt` that says where they are; the second ends at once.

    An evaluation that is under way is finished first, since a checkpoint without its outcome would not resume to the
    same run. Works in any Trainer that saves checkpoints; what it needs to know at resuming lies in them. Signals reach
    the main thread only: elsewhere this callback does nothing.
    """

    def __init__(self, *, how_to_resume: str = "trainer.train(resume_from_checkpoint=True)") -> None:
        """Take the words that tell the user how to go on."""
        self.how_to_resume = how_to_resume
        self.interrupted = False
        self._given: dict[str, Any] = {}
        self._former: dict[int, _Handler] = {}

    def close(self) -> None:
        """Give the signals back to whoever had them; where training ends in an error no event does it."""
        _give_back(self._former)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signals."""
        self.interrupted = False
        self._former = self._former or _take_signals(self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            self.close()
            raise KeyboardInterrupt("stopped at once; the last complete checkpoint is as it was")
        self.interrupted = True
        # No logging here: a handler may run while the logging module holds its lock, or the stream is being written to.
        with suppress(OSError):  # a terminal or a pipe that has gone is no reason not to save
            os.write(2, b"\nfinishing the step and saving; once more stops at once\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop after this step, if asked to."""
        return self._stop(control, args, save=True)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop after this evaluation, if asked to while it ran."""
        return self._stop(control, args, save=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stop after this checkpoint, if asked to while it was written."""
        control = self._stop(control, args, save=False)
        if self.interrupted:  # with a limit of 1, the Trainer ends by removing the newest checkpoint beside the best
            self._change(args, "save_total_limit", None)
        return control

    def _stop(self, control: TrainerControl, args: TrainingArguments, *, save: bool) -> TrainerControl:
        if self._anyone_interrupted(args):
            control.should_training_stop = True
            control.should_save = control.should_save or save
            self._change(args, "save_only_model", False)  # weights alone can't be gone on from
        return control

    def _change(self, args: TrainingArguments, name: str, value: Any) -> None:
        """Set an argument of the Trainer until it ends."""
        self._given.setdefault(name, getattr(args, name))
        setattr(args, name, value)

    def _anyone_interrupted(self, args: TrainingArguments) -> bool:
        """Whether any process was asked to stop: all have to stop after the same step."""
        if args.world_size > 1:
            flag = torch.tensor(int(self.interrupted), device=args.device)
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
            self.interrupted = bool(flag)
        return self.interrupted

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signals back; after an interruption, keep the best weights and raise `KeyboardInterrupt`."""
        self.close()
        while self._given:
            setattr(args, *self._given.popitem())
        if not self._anyone_interrupted(args):
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not checkpoint.is_dir():  # asked to stop after the last step, in a Trainer that does not save it
            logger.warning("training had ended when it was interrupted; its weights are in memory alone, so it goes on")
            return
        source = checkpoint if state.best_model_checkpoint is None else Path(state.best_model_checkpoint)
        kept = f"best weights so far ({source.name})"
        if not source.is_dir() or state.best_global_step not in (None, int(source.name.rpartition("-")[2])):
            source, kept = checkpoint, f"newest weights, since step {state.best_global_step}, the best, was not saved,"
        best = Path(args.output_dir) / BEST_DIRECTORY
        if state.is_world_process_zero:
            with atomic_directory(best) as staged:
                for file in (file for pattern in _WEIGHTS for file in source.glob(pattern)):
                    shutil.copy2(file, staged)
        raise KeyboardInterrupt(
            f"interrupted after step {state.global_step} of {state.max_steps}: {checkpoint} is complete, the "
            f"{kept} are in {best}; go on with {self.how_to_resume}"
        )
