"""What trying a trap shows, and the tiny model that it is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Status = Literal["ok", "handled", "broken"]
"""The trap is not there; it is there and the library goes around it; it is there and would catch a run."""

Attempt = Callable[[], tuple[Status, str]]
"""Tries a trap; gives what it has shown, and that in words."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What trying a trap has shown."""

    trap: str
    status: Status
    detail: str


def tiny_mt5() -> Any:
    """A random mT5 whose head differs from its embedding."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    return tiny(MT5Config, MT5ForConditionalGeneration)


def tiny(configuration: Any, model_class: Any) -> Any:
    """A random model of one layer a side whose head differs from its embedding."""
    config = configuration(
        vocab_size=64,
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_heads=2,
        num_layers=1,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        model.lm_head.weight = nn.Parameter(torch.randn(64, 16))
    return model.eval()
