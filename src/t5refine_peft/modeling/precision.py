"""In which numbers to compute: bf16 where the hardware really has it, else fp32, never fp16."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def choose_precision(device: torch.device) -> Precision:
    """bf16 where it is native (GPU) or faster (CPU), else fp32.

    T5's activations overflow fp16 (its authors trained in bf16), so that is no choice. PyTorch counts emulated bf16 as
    support by default, which Turing cards have: not here.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and _bf16_is_faster_on_cpu() else "float32"


def computing_dtype(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """In which type products on `device` are computed here: autocast's where it is on, else `otherwise`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else otherwise


@cache
def _bf16_is_faster_on_cpu() -> bool:
    """Time one matrix product in both types: only AMX and AVX512-BF16 make bf16 fast, elsewhere it is slower."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        matrix @ matrix
        started = time.perf_counter()
        for _ in range(5):
            matrix @ matrix
        seconds[dtype] = time.perf_counter() - started
    return seconds[torch.bfloat16] < seconds[torch.float32]
