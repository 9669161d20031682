"""Progress of a training run, on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressLines(TrainerCallback):  # type: ignore[misc]
    """A plain line at each evaluation: step, share, epoch, validation loss, time left."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._started = time.monotonic()
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._first_step = state.global_step

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the line."""
        passed = time.monotonic() - self._started
        done = max(1, state.global_step - self._first_step)
        left = passed / done * (state.max_steps - state.global_step)
        print(
            f"{self._domain}: step {state.global_step}/{state.max_steps}, epoch {state.epoch or 0:.1f}, "
            f"validation loss {kwargs['metrics']['eval_loss']:.3f}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
