"""Memory of a training step: planned, tracked and, on a GPU, measured under a hard cap, beside the stock recipe.

Theory: the tables of weights in NF4 (about .52 bytes each), the adapter with gradients and 8-bit AdamW (about 10 bytes
a parameter), a checkpoint a block, and one live block with its dequantised matrix. XL at 1 x 512 -> 256 tokens is then
1.55 GiB of weights, .33 of adapter, .1 of checkpoints, .1 live, and .4 of context.

    python benchmarks/bench_memory.py            # planned and tracked; measured too where there is a GPU
    python benchmarks/bench_memory.py --sizes small base --cap 5.5GiB

Planned is `plan_memory`, from the shape alone. Tracked runs the library's own forward and backward on fake tensors of
the official shapes (see memory_tracker.py for its two stand-ins; the loss is the plan's own) and adds the weights,
optimiser and context of the plan. Measured runs a real step on random weights: `torch.cuda.max_memory_reserved` plus
bitsandbytes' paged state plus the context, in a process of its own that may take no more than the cap; stock is
bitsandbytes NF4 with PEFT's k-bit preparation and gradient checkpointing. Without a GPU the measured columns are
absent, and owed. The result goes to `benchmarks/results/memory.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from memory_tracker import tracked_activations
from t5refine_peft import AdapterConfig, Quantization, load_base, plan_memory
from t5refine_peft.cli.options import parse_bytes
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.memory import GPU_CONTEXT_BYTES, MemoryPlan
from t5refine_peft.modeling.shapes import read_shape
from t5refine_peft.training.trainer import token_loss

RESULTS = Path(__file__).parent / "results" / "memory.json"
LEANEST = Quantization.nf4(head="nf4")
INPUTS, LABELS = 512, 256
CEILINGS_GIB = {("small", 1): 1.0, ("base", 1): 1.0, ("large", 1): 1.5, ("xl", 1): 3.0, ("xl", 8): 5.5}
ADAPTER = AdapterConfig()
ACTIVATIONS = ("shared_bytes", "checkpoint_bytes", "live_layer_bytes", "dequantization_bytes")


def planned(size: str, passages: int) -> MemoryPlan:
    """The leanest scheme with every block recomputed: a budget of one byte leaves no other choice."""
    return plan_memory(f"google/mt5-{size}", 1, quantization=LEANEST, batch=passages, adapter=ADAPTER)


def tracked_bytes(plan: MemoryPlan) -> int:
    """The plan with what was tracked in the place of its activations."""
    found = tracked_activations(
        read_shape(plan.base),
        quantization=plan.quantization,
        adapter=ADAPTER,
        passages=plan.batch,
        input_tokens=INPUTS,
        label_tokens=LABELS,
        checkpointed_blocks=plan.checkpointed_blocks,
    )
    replaced = (*ACTIVATIONS, "loss_bytes", "reserved_bytes")
    beside = sum(value for name, value in plan.parts.items() if name not in replaced)
    during_loss = sum(plan.parts[name] for name in ("shared_bytes", "checkpoint_bytes", "loss_bytes"))
    return beside + max(found["activation_bytes"], during_loss)


def measure(way: str, passages: int, cap: int, directory: str) -> None:
    """One process, one number: the peak of three real steps on a GPU, as JSON; `null` where the cap was met."""
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, (cap - GPU_CONTEXT_BYTES) / torch.cuda.get_device_properties(0).total_memory)
    )
    try:
        bytes_taken = _steps(way, passages, directory)
    except torch.OutOfMemoryError:
        bytes_taken = None
    print(json.dumps(bytes_taken))


def _steps(way: str, passages: int, directory: str) -> int:
    from argparse import Namespace

    from bitsandbytes.optim import PagedAdamW8bit

    from bench_step import stock_loss, stock_model

    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 250_000, (passages, INPUTS), device="cuda"),
        "attention_mask": torch.ones(passages, INPUTS, dtype=torch.int64, device="cuda"),
        "labels": torch.randint(3, 250_000, (passages, LABELS), device="cuda"),
    }
    if way == "ours":
        base = load_base(directory, quantization=LEANEST, device="cuda")
        model = add_adapter(base, ADAPTER).train()
        blocks = len(base.model.encoder.block) + len(base.model.decoder.block)
    else:
        model = stock_model(
            directory, Namespace(quantization="nf4", checkpointing=True, device="cuda"), ADAPTER, torch.bfloat16
        )
    optimizer = PagedAdamW8bit([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    for _ in range(3):
        if way == "ours":
            loss, count = token_loss(model, batch, base, checkpointed_blocks=blocks)
            (loss / count).backward()
        else:
            stock_loss(model, batch, torch.bfloat16).backward()
        optimizer.step()
        optimizer.zero_grad()
    paged = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and getattr(value, "is_paged", False)
    )
    free, whole = torch.cuda.mem_get_info()
    context = max(0, whole - free - torch.cuda.memory_reserved() - paged)
    return torch.cuda.max_memory_reserved() + paged + context


def measured(size: str, passages: int, cap: int) -> dict[str, int | None]:
    """Both recipes on random weights of the official shape, each in its own process."""
    from official_shapes import write_random_base

    with tempfile.TemporaryDirectory() as directory:
        write_random_base(Path(directory), size)
        found = {}
        for way in ("ours", "stock"):
            command = [sys.executable, __file__, "--measure", way, str(passages), str(cap), directory]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[f"measured_{way}_bytes"] = json.loads(output.splitlines()[-1])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "base", "large", "xl"])
    parser.add_argument("--cap", default="5.5GiB", help="what a measured process may take of the GPU")
    parser.add_argument("--measure", nargs=4, metavar=("WAY", "PASSAGES", "CAP", "DIRECTORY"), help="one process")
    options = parser.parse_args()
    if options.measure:
        way, passages, cap, directory = options.measure
        measure(way, int(passages), int(cap), directory)
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": {}}
    results["versions"] = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    results["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: measured figures are owed"
    for (size, passages), ceiling in CEILINGS_GIB.items():
        if size not in options.sizes:
            continue
        plan = planned(size, passages)
        tracked = tracked_bytes(plan)
        row: dict[str, Any] = {
            "planned_bytes": plan.total_bytes,
            "tracked_bytes": tracked,
            "planned_over_tracked": round(plan.total_bytes / tracked, 3),
            "ceiling_gib": ceiling,
            "parts": dict(plan.parts),
            "host_bytes": plan.host_bytes,
        }
        if torch.cuda.is_available():
            row.update(measured(size, passages, parse_bytes(options.cap)))
        results["rows"][f"{size} {passages} x {INPUTS} -> {LABELS}"] = row
        shown = {name: f"{value / 2**30:.2f} GiB" for name, value in row.items() if name.endswith("_bytes") and value}
        print(f"mt5-{size} {passages} x {INPUTS} -> {LABELS}:", shown, "ceiling", ceiling, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
