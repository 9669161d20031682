"""What a run takes of the memory, and smaller micro-batches when it runs out, with the batch and its order as they
were."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers.trainer_callback import ExportableState

from t5refine_peft.errors import RefineError
from t5refine_peft.training.cuts import cut_batch, passage_tokens

logger = logging.getLogger(__name__)


def memory_in_use() -> int:
    """Bytes: the most that this process has held of a GPU, or what it holds of the host's memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class _Limit:
    """What goes through the model at once."""

    passages: int
    tokens: int | None
    """None sets no limit."""


class MicroBatches(ExportableState):  # type: ignore[misc]
    """How many passages go through the model at once; less after each time that the memory ran out.

    A checkpoint keeps the sizes: dropout draws a mask for each micro-batch, so that a resumed run would go on with
    other masks if it cut its batches in another way.
    """

    def __init__(self, *, train: int, evaluation: int, max_tokens: int | None = None) -> None:
        """Begin with this many passages in training and in evaluation, and of them at most `max_tokens` tokens."""
        self._limits = {False: _Limit(train, max_tokens), True: _Limit(evaluation, max_tokens)}
        self._latest: dict[str, torch.Tensor] = {}

    @property
    def limits(self) -> list[list[int | None]]:
        """Passages and tokens at once, in training and in evaluation, as JSON holds them."""
        return [[limit.passages, limit.tokens] for limit in (self._limits[False], self._limits[True])]

    @limits.setter
    def limits(self, limits: list[tuple[int, int | None]]) -> None:
        self._limits = {evaluation: _Limit(*limits[evaluation]) for evaluation in (False, True)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"limits": self.limits}}

    def split(self, inputs: dict[str, torch.Tensor], *, evaluation: bool = False) -> Iterator[dict[str, torch.Tensor]]:
        """Cut a batch, (passages, tokens) each, into parts that fit."""
        limit = self._limits[evaluation]
        rows = len(inputs["labels"])
        for at in range(0, rows, limit.passages):
            whole = rows <= limit.passages
            some = inputs if whole else {n: tensor[at : at + limit.passages] for n, tensor in inputs.items()}
            for part in cut_batch(some, max_tokens=limit.tokens):
                self._latest = part
                yield part

    def halve(self, error: RuntimeError, *, step: int, processes: int = 1, evaluation: bool = False) -> None:
        """Halve the size after `error`, and say so: that of the part that `split` gave last, which did not fit.

        The limits may be far above that part, so that halving them would try it again as it was.

        Raises:
            RuntimeError: `error` itself, if it is not that the memory ran out.
            RefineError: one passage alone does not fit, or other processes wait for the gradients of this one.
        """
        if not should_reduce_batch_size(error):
            raise error
        passages = len(self._latest["labels"])
        if passages == 1:
            raise RefineError(
                f"out of memory at step {step} with one passage at a time: take a lower max_passage_tokens, "
                "a quantised base, or a smaller one"
            ) from error
        if processes > 1:
            raise RefineError(
                f"out of memory at step {step} with {passages} passages a process: set micro_batch to {passages // 2}, "
                "since processes that wait for each other can't make the step anew"
            ) from error
        tokens = self._limits[evaluation].tokens
        if tokens is not None:
            tokens = max(1, int(passage_tokens(self._latest).sum()) // 2)
        self._limits[evaluation] = _Limit(passages // 2, tokens)
        what = "evaluation batch" if evaluation else "micro-batch"
        told = "passages" if tokens is None else f"passages of at most {tokens} tokens together"
        logger.warning(
            "out of memory at step %d: %s %d -> %d %s; the batch and its order stay as they were",
            step, what, passages, passages // 2, told,
        )  # fmt: skip
        clear_device_cache(garbage_collection=True)
