"""What a checkpoint keeps of a callback comes back to it, whatever the Trainer's arguments say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerState
from transformers.trainer_callback import ExportableState


def restore_from(state: TrainerState, callback: ExportableState) -> bool:
    """Give `callback` the attributes that the checkpoint of a resumed run holds of its kind.

    The Trainer does so with `restore_callback_states_from_checkpoint=True` alone, which is not its default; its way
    also brings back the arguments, and so does away with those that a resumed run was given anew. Of several callbacks
    of one kind nothing tells which is which: they are left to the Trainer.

    Returns:
        Whether the run is a resumed one.
    """
    kept = state.stateful_callbacks.get(type(callback).__name__)
    if state.global_step and isinstance(kept, dict):
        put_back(kept, callback)
    return bool(state.global_step)


def put_back(kept: Mapping[str, Any], callback: ExportableState) -> None:
    """Give `callback` the attributes that its `state()` once told."""
    for name, value in kept["attributes"].items():
        setattr(callback, name, value)
