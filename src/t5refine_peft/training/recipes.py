"""Settings for a base in an amount of memory: what it loses least by, and is kept busy with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from t5refine_peft.config import TrainingConfig
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.memory import MemoryPlan, plan_memory
from t5refine_peft.modeling.precision import Precision
from t5refine_peft.modeling.shapes import Shape, read_shape
from t5refine_peft.training.data import longest_passage

WANTED_PASSAGES = 4
"""So many passages of full length at once keep a GPU busy: about 1,000 tokens at the usual length. A base is quantised
no further than it must for that; micro-batches have no bearing on the result, and quantisation has."""


def recipe(base: str | Path, memory_bytes: int, *, config: TrainingConfig | None = None) -> TrainingConfig:
    """Choose quantization and micro-batch for a base on a GPU.

    It takes the least lossy scheme at which `WANTED_PASSAGES` of full length are in memory at once, or, where none
    does, the most passages that the leanest scheme leaves room for; then the largest micro-batch that fits.

    >>> for size in (6, 12):
    ...     found = recipe("google/mt5-xl", size * 10**9)
    ...     print(found.quantization.linear, found.micro_batch)
    int8 16
    none 16

    Args:
        base: see `load_base`; of a hub id, config.json alone is read.
        memory_bytes: what training may take.
        config: all other settings, the batch and lengths of passages among them.

    Raises:
        RefineError: no such base, or one that does not fit however it is stored.
    """
    config = config or TrainingConfig()
    shape = read_shape(base)
    sizes = [size for size in range(config.batch, 0, -1) if config.batch % size == 0]
    wanted = max(size for size in sizes if size <= WANTED_PASSAGES)
    for least in [size for size in sizes if size <= wanted]:
        plan = _plan(shape, memory_bytes, config, least)
        if plan.fits:
            scheme = replace(config, quantization=plan.quantization)
            most = next(size for size in sizes if _plan(shape, memory_bytes, scheme, size).fits)
            return replace(scheme, micro_batch=most, memory_bytes=memory_bytes)
    raise RefineError(f"{plan.advice}; see t5refine plan --base {base}")


def _plan(shape: Shape, memory_bytes: int, config: TrainingConfig, passages: int) -> MemoryPlan:
    """With the scheme of `config`, or the least lossy that fits."""
    input_tokens, label_tokens = longest_passage((), config)
    precision: Precision = "bfloat16" if config.precision == "auto" else config.precision
    return plan_memory(
        shape,
        memory_bytes,
        quantization=config.quantization,
        batch=passages,
        input_tokens=input_tokens,
        label_tokens=label_tokens,
        adapter=config.adapter,
        precision=precision,
        device="cuda",
    )
