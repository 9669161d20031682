"""`t5refine plan`: what fits in this much memory, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from t5refine_peft.cli import options
from t5refine_peft.cli.tables import print_table
from t5refine_peft.config import RunConfig

if TYPE_CHECKING:
    from t5refine_peft.modeling.memory import MemoryPlan


def plan(
    memory: options.Memory,
    base: options.Base = RunConfig.base,
    quantization: Annotated[str | None, typer.Option(help="none, int8 or nf4; by default the least lossy.")] = None,
    batch: Annotated[int | None, typer.Option(help="Passages in memory at once; by default as many as fit.")] = None,
    input_tokens: Annotated[int, typer.Option(help="Of the longest passage.")] = 512,
    label_tokens: Annotated[int, typer.Option(help="Of the longest passage's labels.")] = 256,
    rank: Annotated[int | None, typer.Option(help="The adapter's rank.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Plan the memory of training from a base's configuration alone; no weights are read.

    Example: t5refine plan --base google/mt5-xl --memory 6GB
    """
    options.stay_offline(offline)
    from t5refine_peft.config import AdapterConfig
    from t5refine_peft.errors import RefineError
    from t5refine_peft.modeling.memory import plan_memory
    from t5refine_peft.modeling.shapes import OFFICIAL_NAMES

    if device not in ("cuda", "cpu"):
        raise RefineError(f"--device: no device {device!r} to plan for: expected cuda or cpu")

    budget_bytes, scheme = options.parse_memory(memory), options.parse_quantization(quantization)

    def planned(name: str) -> MemoryPlan:
        return plan_memory(
            name,
            budget_bytes,
            quantization=scheme,
            batch=batch,
            input_tokens=input_tokens,
            label_tokens=label_tokens,
            adapter=AdapterConfig() if rank is None else AdapterConfig(rank=rank),
            device="cuda" if device == "cuda" else "cpu",
        )

    found = planned(base)
    if as_json:
        print(json.dumps(plan_as_json(found)))
        return
    for line in plan_lines(found):
        print(line)
    print("\nall sizes of mT5 in the same memory")
    print_table(("base", "", "GiB", "layers", "head", "at once", "recomputed"), map(_row, map(planned, OFFICIAL_NAMES)))


def plan_as_json(plan: MemoryPlan) -> dict[str, object]:
    """A plan for a program: the settings, each part in bytes, the total, and whether it fits."""
    from dataclasses import asdict

    settings = {name: value for name, value in asdict(plan).items() if name != "parts"}
    return {
        **settings,
        "optimizer": "paged_adamw_8bit" if plan.device == "cuda" else "adamw_torch_fused",
        **plan.parts,
        "total_bytes": plan.total_bytes,
        "fits": plan.fits,
    }


def plan_lines(plan: MemoryPlan) -> Iterator[str]:
    """A plan of the memory: the verdict, and below it what each part takes."""
    yield from _verdict(plan)
    for name, size in plan.parts.items():
        yield f"  {name.removesuffix('_bytes').replace('_', ' '):16}{size / 2**20:10.1f} MiB"
    yield f"  {'peak':16}{plan.total_bytes / 2**20:10.1f} MiB (a live layer or the loss, whichever is larger)"
    if plan.host_bytes:
        yield f"  {'on the host':16}{plan.host_bytes / 2**20:10.1f} MiB"
    if plan.advice:
        yield plan.advice


def _row(plan: MemoryPlan) -> tuple[str, ...]:
    scheme = plan.quantization
    verdict = "fits" if plan.fits else "does not fit"
    recomputed = f"{plan.checkpointed_blocks} of {plan.blocks}"
    size = f"{plan.total_bytes / 2**30:.2f}"
    return plan.base, verdict, size, scheme.linear, scheme.head, str(plan.batch), recomputed


def _verdict(plan: MemoryPlan) -> Iterator[str]:
    from t5refine_peft.modeling.memory import describe

    verdict = "fits" if plan.fits else "does not fit"
    yield f"{plan.base}: {verdict}, {plan.total_bytes / 2**30:.2f} of {plan.budget_bytes / 2**30:.2f} GiB"
    yield f"  {describe(plan.quantization)}"
    yield (
        f"  {plan.batch} x {plan.input_tokens} -> {plan.label_tokens} tokens at once, "
        f"{plan.checkpointed_blocks} of {plan.blocks} blocks recomputed"
    )
