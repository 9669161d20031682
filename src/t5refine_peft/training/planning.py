"""The memory of a run, planned before its base is loaded, and kept to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from datasets import DatasetDict

from t5refine_peft.config import Quantization, TrainingConfig
from t5refine_peft.corpus.reading import Corpus
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import Base, choose_device
from t5refine_peft.modeling.memory import GPU_CONTEXT_BYTES, MemoryPlan, plan_memory
from t5refine_peft.modeling.precision import choose_precision
from t5refine_peft.modeling.stored import read_record
from t5refine_peft.training.data import longest_passage


def plan_training(
    base: str | Path | Base, config: TrainingConfig, corpus: Corpus | DatasetDict = ()
) -> MemoryPlan | None:
    """The plan of a run: within `config.memory_bytes`, else within what the GPU has free; None on a CPU without it.

    Args:
        base: as `train_adapter` takes it.
        config: gives the memory and what is asked for.
        corpus: where it is prepared, its longest passage is planned for; else one of `config.max_passage_tokens`.

    Raises:
        RefineError: it does not fit, with the plan's advice.
    """
    device = base.device if isinstance(base, Base) else choose_device(config.device)
    if config.memory_bytes is None and device.type != "cuda":
        return None
    plan = _plan(base, config, device, config.memory_bytes or _own_and_free_bytes(device), corpus)
    if not plan.fits:
        raise RefineError(f"{plan.advice}; see t5refine plan --base {plan.base}")
    return plan


@contextmanager
def capped_memory(plan: MemoryPlan | None, device: torch.device) -> Iterator[None]:
    """Within this context PyTorch takes no more of a GPU than the plan's budget: Windows would spill to the host
    without a word. Afterwards the process may take as much as before."""
    if plan is None or device.type != "cuda":
        yield
        return
    whole = torch.cuda.get_device_properties(device).total_memory
    before = torch.cuda.get_per_process_memory_fraction(device)
    torch.cuda.set_per_process_memory_fraction(min(before, (plan.budget_bytes - GPU_CONTEXT_BYTES) / whole), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def forecast(base: Base, config: TrainingConfig, corpus: DatasetDict) -> MemoryPlan:
    """What a run without a plan takes, beside what the host's memory has free: of the batch as it is configured."""
    whole = replace(config, micro_batch=config.micro_batch or config.batch)
    return _plan(base, whole, base.device, psutil.virtual_memory().available, corpus)


def _plan(
    base: str | Path | Base,
    config: TrainingConfig,
    device: torch.device,
    budget_bytes: int,
    corpus: Corpus | DatasetDict,
) -> MemoryPlan:
    input_tokens, label_tokens = longest_passage(corpus, config)
    return plan_memory(
        base.name if isinstance(base, Base) else base,
        budget_bytes,
        quantization=base.quantization if isinstance(base, Base) else config.quantization or _saved(base),
        batch=config.micro_batch,
        max_batch=config.batch,
        input_tokens=input_tokens,
        label_tokens=label_tokens,
        adapter=config.adapter,
        precision=choose_precision(device) if config.precision == "auto" else config.precision,
        device="cuda" if device.type == "cuda" else "cpu",
    )


def _saved(base: str | Path) -> Quantization | None:
    """How a directory that `save_quantized` wrote is stored; None leaves the choice."""
    record = read_record(Path(base))
    return None if record is None else record.quantization


def _own_and_free_bytes(device: torch.device) -> int:
    """What a GPU has free, with what this process holds of it already: its context, and perhaps a loaded base."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) + GPU_CONTEXT_BYTES
