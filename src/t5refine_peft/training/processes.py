"""What `torchrun` and `accelerate launch` tell a process of its place among others, before they have met."""

from __future__ import annotations

import os

import torch

from t5refine_peft.config import TrainingConfig
from t5refine_peft.errors import RefineError


def process_count() -> int:
    """How many processes train this adapter, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def local_device() -> str | None:
    """The GPU of this process where each has its own; None leaves the choice."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def micro_batches(config: TrainingConfig) -> tuple[int, int]:
    """Passages that a process holds at once, and how many such micro-batches it adds up for a step.

    Raises:
        RefineError: the batch can't be shared out evenly.
    """
    processes = process_count()
    share, rest = divmod(config.batch, processes)
    size = min(config.micro_batch or share, share)
    if rest or share % size:
        raise RefineError(
            f"batch must be a multiple of micro_batch times the number of processes, found {config.batch}, "
            f"{config.micro_batch or share} and {processes}"
        )
    return size, share // size
