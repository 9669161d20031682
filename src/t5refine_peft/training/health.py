"""A run whose numbers have left the finite is stopped before it spoils anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5refine_peft.errors import RefineError
from t5refine_peft.training.checkpoints import RunDirectory

_DOCUMENTS_TOLD = 20
_IN_STEP = "the loss or its gradient"


class HealthCallback(TrainerCallback):  # type: ignore[misc]
    """Stop at the first loss or gradient that is not finite, before the optimiser has taken it.

    Weights, optimiser and checkpoints stay those of the step before. A loss that is not finite has such gradients where
    there is anything to learn, so that the gradients alone are looked at, by one reduction over the trained weights a
    step; the loss itself when it is logged. Works in any Trainer.
    """

    def __init__(self, *, documents_of: Callable[[int], list[str]] | None = None) -> None:
        """Take what names the documents in the batch of a step (counted from 1); None names none."""
        self._documents_of = documents_of
        self._trained: list[torch.nn.Parameter] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note which weights are trained: going through the whole model costs more than the check."""
        args.logging_nan_inf_filter = (
            False  # the Trainer's own: it logs another loss in place of one that is not finite
        )
        self._trained = [weight for weight in kwargs["model"].parameters() if weight.requires_grad]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients.

        Raises:
            RefineError: one is NaN or infinite.
        """
        gradients = [weight.grad for weight in self._trained if weight.grad is not None]
        if not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            return
        raise RefineError(self._sentence(_IN_STEP, args, state, kwargs["model"]))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the loss: of a batch without labels, a model's own is NaN and its gradients are zero.

        Raises:
            RefineError: it is NaN or infinite.
        """
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise RefineError(self._sentence("the loss", args, state, kwargs["model"]))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Look at the metrics.

        Raises:
            RefineError: one is NaN or infinite.
        """
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise RefineError(self._sentence(name, args, state, kwargs["model"]))

    def _sentence(self, what: str, args: TrainingArguments, state: TrainerState, model: torch.nn.Module) -> str:
        step = state.global_step + 1 if what == _IN_STEP else state.global_step
        documents = self._documents_of(step) if self._documents_of and step > state.global_step else []
        more = f" and {len(documents) - _DOCUMENTS_TOLD} more" if len(documents) > _DOCUMENTS_TOLD else ""
        batch = f" (its batch: {', '.join(documents[:_DOCUMENTS_TOLD])}{more})" if documents else ""
        checkpoints = RunDirectory(Path(args.output_dir)).checkpoints()
        kept = f"{checkpoints[-1]} is as it was" if checkpoints else "no checkpoint was due yet"
        return f"{what} is not finite at step {step}{batch}: {_likely_cause(args, state, model)}; {kept}"


def _likely_cause(args: TrainingArguments, state: TrainerState, model: torch.nn.Module) -> str:
    """At the first step no update has been made yet: only then is it not the learning rate."""
    quantised = any(not weight.dtype.is_floating_point for weight in model.parameters())
    if state.global_step == 0:
        if quantised:
            return "before any update, so likely a bad quantisation of the base; train without quantisation to see"
        return "before any update, so likely broken weights of the base or a number format that overflows"
    return f"likely the learning rate {args.learning_rate:g} is too high; train anew with a third of it"
