"""Where a layer's weights live and how they are stored: decided here, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from t5refine_peft.config import Quantization, StorageFormat
from t5refine_peft.modeling.precision import Precision

Kind = Literal["linear", "head", "embedding", "norm", "position_bias"]
"""Of a weight: a matrix of attention or the feed-forward, the head, the embedding, a norm, a table of position bias."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Of one weight: how it is stored, where, and of which type its numbers are where it is not quantised."""

    storage: StorageFormat
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The places of a base's weights, by their kind."""

    quantization: Quantization
    precision: Precision
    device: torch.device
    """Where the model computes."""
    embedding_device: torch.device | None = None
    """Where the embedding lies; None is the host where the linear layers are quantised and it is not, else `device`."""

    def of(self, kind: Kind) -> Place:
        """The place of a weight.

        Norms are fp32 beside quantised layers: they are small, and their rounding would add to the quantisation's.
        """
        storage: StorageFormat = "none"
        device, dtype = self.device, getattr(torch, self.precision)
        if kind == "linear":
            storage = self.quantization.linear
        elif kind == "head":
            storage = self.quantization.head
        elif kind == "embedding":
            storage = self.quantization.embedding
            on_host = self.quantization.linear != "none" and storage == "none"
            device = self.embedding_device or (torch.device("cpu") if on_host else self.device)
        elif kind == "norm" and self.quantization.linear != "none":
            dtype = torch.float32
        return Place(storage=storage, device=device, dtype=dtype)
