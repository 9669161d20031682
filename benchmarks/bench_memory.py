"""Memory of a training step: planned, tracked and, on a GPU, measured under a hard cap, beside the stock recipe.

Theory: the tables of weights in NF4 (about .52 bytes each), the adapter with gradients and 8-bit AdamW (about 10 bytes
a parameter), a checkpoint a block, and one live block with its dequantised matrix. XL at 1 x 512 -> 256 tokens is then
1.55 GiB of weights, .33 of adapter, .1 of checkpoints, .1 live, and .4 of context.

    python benchmarks/bench_memory.py            # planned and tracked; measured too where there is a GPU
    python benchmarks/bench_memory.py --sizes small base --cap 5.5GiB
    python benchmarks/bench_memory.py --scheme int8    # where bitsandbytes is not installed: without the stock recipe

Planned is `plan_memory`, from the shape alone. Tracked runs the library's own forward and backward on fake tensors of
the official shapes (see memory_tracker.py for its two stand-ins; the loss is the plan's own) and adds the weights,
optimiser and context of the plan. Measured runs three real steps on random weights, in a process of its own that may
take no more than the cap: `torch.cuda.max_memory_reserved` while loading and, apart from it, in the steps, plus
bitsandbytes' paged state, plus the context: what the GPU has in use beside these, other programs' share included, so
that it is told too. Stock is bitsandbytes NF4 with PEFT's k-bit preparation and gradient checkpointing. Where a process
met the cap, its figure is null. Without a GPU the measured columns are absent, and owed. The result goes to
`benchmarks/results/memory.json`; another scheme's rows stand beside those of the leanest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import modeling_utils

from bench_step import installed, stock_loss, stock_model
from memory_tracker import tracked_activations
from official_shapes import write_random_base
from t5refine_peft import AdapterConfig, Quantization, load_base, plan_memory
from t5refine_peft.config_file.values import parse_bytes
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.memory import GPU_CONTEXT_BYTES, MemoryPlan
from t5refine_peft.modeling.objective import token_loss
from t5refine_peft.modeling.precision import choose_precision
from t5refine_peft.modeling.shapes import read_shape

RESULTS = Path(__file__).parent / "results" / "memory.json"
LEANEST = "leanest"
SCHEMES = {
    LEANEST: Quantization.nf4(head="nf4"),
    "nf4": Quantization.nf4(),
    "int8": Quantization.int8(),
    "none": Quantization.none(),
}
INPUTS, LABELS = 512, 256
CEILINGS_GIB = {("small", 1): 1.0, ("base", 1): 1.0, ("large", 1): 1.5, ("xl", 1): 3.0, ("xl", 8): 5.5}
ADAPTER = AdapterConfig()
ACTIVATIONS = ("shared_bytes", "checkpoint_bytes", "live_layer_bytes", "dequantization_bytes")


def planned(size: str, passages: int, scheme: str) -> MemoryPlan:
    """With every block recomputed: a budget of one byte leaves no other choice."""
    precision = choose_precision(torch.device("cuda")) if torch.cuda.is_available() else "bfloat16"
    return plan_memory(
        f"google/mt5-{size}", 1, quantization=SCHEMES[scheme], batch=passages, adapter=ADAPTER, precision=precision
    )


def tracked_bytes(plan: MemoryPlan) -> int:
    """The plan with what was tracked in the place of its activations; computed with bf16."""
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


def measure(way: str, scheme: str, passages: int, cap: int, directory: str) -> None:
    """One process, one row: the peak of three real steps on a GPU, as JSON; nulls where the cap was met."""
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, (cap - GPU_CONTEXT_BYTES) / torch.cuda.get_device_properties(0).total_memory)
    )
    try:
        found = _steps(way, scheme, passages, directory)
    except torch.OutOfMemoryError as error:
        print(error, file=sys.stderr)
        found = dict.fromkeys(("bytes", "loading_bytes", "context_bytes"))
    print(json.dumps(found))


def _steps(way: str, scheme: str, passages: int, directory: str) -> dict[str, int | None]:
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 250_000, (passages, INPUTS), device="cuda"),
        "attention_mask": torch.ones(passages, INPUTS, dtype=torch.int64, device="cuda"),
        "labels": torch.randint(3, 250_000, (passages, LABELS), device="cuda"),
    }
    dtype = getattr(torch, choose_precision(torch.device("cuda")))
    if way == "ours":
        base = load_base(directory, quantization=SCHEMES[scheme], device="cuda")
        model = add_adapter(base, ADAPTER).to("cuda").train()
        blocks = len(base.model.encoder.block) + len(base.model.decoder.block)
    else:
        modeling_utils.caching_allocator_warmup = lambda *_: None  # it would reserve more than the recipe needs
        stock = Namespace(quantization="nf4", checkpointing=True, device="cuda")
        model = stock_model(directory, stock, ADAPTER, dtype)
    loading = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    optimizer = _optimizer([weight for weight in model.parameters() if weight.requires_grad])
    for _ in range(3):
        if way == "ours":
            loss, count = token_loss(model, batch, base, checkpointed_blocks=blocks)
            (loss / count).backward()
        else:
            stock_loss(model, batch, dtype).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    paged = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and getattr(value, "is_paged", False)
    )
    free, whole = torch.cuda.mem_get_info()
    context = max(0, whole - free - torch.cuda.memory_reserved() - paged)
    return {
        "bytes": torch.cuda.max_memory_reserved() + paged + context,
        "loading_bytes": loading + context,
        "context_bytes": context,
    }


def _optimizer(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The 8-bit one that training takes; without bitsandbytes PyTorch's, whose state is four times as large."""
    if find_spec("bitsandbytes") is None:
        return torch.optim.AdamW(weights, lr=1e-4, fused=True)
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(weights, lr=1e-4)


def measured(passages: int, scheme: str, cap: int, directory: str) -> dict[str, int | None]:
    """Both recipes on the random base in `directory`, each in its own process."""
    found = {}
    for way in ("ours", "stock"):
        if way == "stock" and find_spec("bitsandbytes") is None:
            print("no stock recipe: bitsandbytes is not installed", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--measure", way, scheme, str(passages), str(cap), directory]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found |= {f"measured_{way}_{name}": value for name, value in json.loads(output.splitlines()[-1]).items()}
    return found


def compared(plan: MemoryPlan, ceiling: float) -> dict[str, Any]:
    """What is known of a plan without a GPU."""
    tracked = tracked_bytes(plan)
    return {
        "planned_bytes": plan.total_bytes,
        "tracked_bytes": tracked,
        "planned_over_tracked": round(plan.total_bytes / tracked, 3),
        "ceiling_gib": ceiling,
        "parts": dict(plan.parts),
        "host_bytes": plan.host_bytes,
    }


def over_measured(plan: MemoryPlan, found: dict[str, int | None]) -> float | None:
    """The plan's share of what was measured, with the context and, without bitsandbytes, the optimiser as they were."""
    whole, context = found.get("measured_ours_bytes"), found.get("measured_ours_context_bytes")
    if whole is None or context is None:
        return None
    ours = plan.total_bytes - plan.parts["context_bytes"] + context
    if find_spec("bitsandbytes") is None:
        ours += 2 * plan.parts["adapter_bytes"] - plan.parts["optimizer_bytes"]
    return round(ours / whole, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", choices=["small", "base", "large", "xl"], default=["small", "base", "large", "xl"]
    )
    parser.add_argument("--cap", default="5.5GiB", help="what a measured process may take of the GPU")
    parser.add_argument("--scheme", choices=SCHEMES, default=LEANEST)
    parser.add_argument("--measure", nargs=5, metavar=("WAY", "SCHEME", "PASSAGES", "CAP", "DIRECTORY"), help="one run")
    options = parser.parse_args()
    if options.measure:
        way, scheme, passages, cap, directory = options.measure
        measure(way, scheme, int(passages), int(cap), directory)
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": {}}
    results["versions"] = installed("torch", "transformers", "peft", "bitsandbytes")
    on_gpu = torch.cuda.is_available()
    results["device"] = torch.cuda.get_device_name() if on_gpu else "none: measured figures are owed"
    RESULTS.parent.mkdir(exist_ok=True)
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as directory:
            if on_gpu:
                write_random_base(Path(directory), size)
            for passages, ceiling in ((n, gib) for (name, n), gib in CEILINGS_GIB.items() if name == size):
                plan = planned(size, passages, options.scheme)
                row = compared(plan, ceiling)
                if on_gpu:
                    row |= measured(passages, options.scheme, parse_bytes(options.cap), directory)
                    row["planned_over_measured"] = over_measured(plan, row)
                what = "" if options.scheme == LEANEST else f", {options.scheme}"
                results["rows"][f"{size} {passages} x {INPUTS} -> {LABELS}{what}"] = row
                RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
                shown = {
                    name: f"{value / 2**30:.2f} GiB" for name, value in row.items() if name[-6:] == "_bytes" and value
                }
                print(f"mt5-{size} {passages} x {INPUTS} -> {LABELS}{what}:", shown, "ceiling", ceiling, flush=True)


if __name__ == "__main__":
    main()
