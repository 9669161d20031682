"""The states of the random generators: for a checkpoint, and for a step that is done anew."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of all generators of this process, as the Trainer reads them back."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), **dropout_states()}


def dropout_states() -> dict[str, Any]:
    """The states of PyTorch's generators alone: a few microseconds, so that each step can be done anew."""
    states: dict[str, Any] = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = (
            torch.cuda.random.get_rng_state_all()
            if torch.distributed.is_initialized()
            else torch.cuda.random.get_rng_state()
        )
    return states


def restore_dropout(states: dict[str, Any]) -> None:
    """Let dropout draw again what it drew since `dropout_states` told `states`."""
    torch.random.set_rng_state(states["cpu"])
    cuda = states.get("cuda")
    if isinstance(cuda, list):
        torch.cuda.random.set_rng_state_all(cuda)
    elif cuda is not None:
        torch.cuda.random.set_rng_state(cuda)
