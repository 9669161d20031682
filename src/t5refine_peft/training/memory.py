"""Smaller micro-batches when the memory runs out, with the batch and its order as they were."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from t5refine_peft.errors import RefineError
from t5refine_peft.training.cuts import cut_batch

logger = logging.getLogger(__name__)


class MicroBatches:
    """How many passages go through the model at once; less after each time that the memory ran out.

    A resumed run begins with the configured size, and finds the one that fits again.
    """

    def __init__(self, *, train: int, evaluation: int, max_tokens: int | None = None) -> None:
        """Begin with this many passages in training and in evaluation, and of them at most `max_tokens` tokens."""
        self._train = train
        self._evaluation = evaluation
        self._max_tokens = max_tokens

    def split(self, inputs: dict[str, torch.Tensor], *, evaluation: bool = False) -> Iterator[dict[str, torch.Tensor]]:
        """Cut a batch, (passages, tokens) each, into parts that fit."""
        size = self._evaluation if evaluation else self._train
        rows = len(inputs["labels"])
        for at in range(0, rows, size):
            part = inputs if rows <= size else {name: tensor[at : at + size] for name, tensor in inputs.items()}
            yield from cut_batch(part, max_tokens=self._max_tokens)

    def halve(self, error: RuntimeError, *, step: int, processes: int = 1, evaluation: bool = False) -> None:
        """Halve the size after `error`, and say so.

        Raises:
            RuntimeError: `error` itself, if it is not that the memory ran out.
            RefineError: one passage alone does not fit, or other processes wait for the gradients of this one.
        """
        if not should_reduce_batch_size(error):
            raise error
        size = self._evaluation if evaluation else self._train
        if size == 1:
            raise RefineError(
                f"out of memory at step {step} with one passage at a time: take a lower max_passage_tokens, "
                "a quantised base, or a smaller one"
            ) from error
        if processes > 1:
            raise RefineError(
                f"out of memory at step {step} with {size} passages a process: set micro_batch to {size // 2}, since "
                "processes that wait for each other can't make the step anew"
            ) from error
        if evaluation:
            self._evaluation = size // 2
        else:
            self._train = size // 2
        if self._max_tokens is not None:
            self._max_tokens = max(1, self._max_tokens // 2)
        what = "evaluation batch" if evaluation else "micro-batch"
        passages = "passages" if self._max_tokens is None else f"passages of at most {self._max_tokens} tokens together"
        logger.warning(
            "out of memory at step %d: %s %d -> %d %s; the batch and its order stay as they were",
            step, what, size, size // 2, passages,
        )  # fmt: skip
        clear_device_cache(garbage_collection=True)
