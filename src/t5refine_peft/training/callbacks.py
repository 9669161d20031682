"""Callbacks that work in any Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class DelayedEarlyStoppingCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Stop when the validation loss no longer falls, but not before `start_step`.

    A domain's loss often stands still for a while before it falls again, so that a verdict in the first part of a run
    is likely wrong.
    """

    def __init__(self, *, start_step: float = 0.3, patience: int = 5, threshold: float = 0.001) -> None:
        """Take the share of the run (below 1) or the step (1 and above) before which nothing is judged, the number of
        evaluations without betterment that is borne after it, and by how much lower a loss must be to count."""
        self.start_step = start_step
        self.patience = patience
        self.threshold = threshold
        self.best: float | None = None
        self.waited = 0
        self.stopped = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Judge the newest validation loss."""
        loss = kwargs["metrics"]["eval_loss"]
        start = self.start_step * state.max_steps if self.start_step < 1 else self.start_step
        if self.best is None or loss < self.best - self.threshold:
            self.best, self.waited = loss, 0
        elif state.global_step >= start:
            self.waited += 1
        if self.waited >= self.patience:
            control.should_training_stop = self.stopped = True
        return control

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {
            "args": {"start_step": self.start_step, "patience": self.patience, "threshold": self.threshold},
            "attributes": {"best": self.best, "waited": self.waited, "stopped": self.stopped},
        }
