"""Training steps a second: this library's beside stock Hugging Face + PEFT, on the same passages and global batches.

Theory. A frozen base costs 4 FLOPs a parameter and token (2 forward, 2 for the gradient that flows through), 6 where
blocks are recomputed: that is the physical limit, and the share of it that is reached is printed, with the device's own
rate for a large matrix product as the whole. What stands between the stock recipe and that limit: padding (dynamic
padding with length grouping leaves some, packing none), adapter inputs cast to fp32 and outputs scaled at full width,
norms and activations in several passes, the attention mask made anew in each layer, the logits.

    python benchmarks/bench_step.py --base builtin:mt5-mini
    python benchmarks/bench_step.py --base google/mt5-base --device cuda --quantization nf4 --checkpointing
    python benchmarks/bench_step.py --shape large --quantization nf4 --checkpointing    # random weights: no download

Stock: `model(**batch, labels=...)` under bf16 autocast where the base is bf16, Hugging Face's SDPA attention,
`DataCollatorForSeq2Seq`'s dynamic padding to a multiple of 8, batches of passages of about one length, the adapter from
the same configuration; with NF4, bitsandbytes' layers and PEFT's k-bit preparation. Both take turns in one process,
batch by batch, so that a busy machine slows both; the ratio is of the sums of time. With one thread, time is that of
the thread's own processor. The result goes to `benchmarks/results/step.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from official_shapes import SHAPES, write_random_base
from t5refine_peft import AdapterConfig, Quantization, load_base
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.location import base_directory
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.objective import token_loss
from t5refine_peft.modeling.shapes import read_shape

RESULTS = Path(__file__).parent / "results" / "step.json"
Batch = dict[str, torch.Tensor]


def make_batches(kind: str, *, passages: int, count: int, rows: int, longest: int, seed: int = 0) -> list[Batch]:
    """Global batches, passages of about one length together: `mixed` is log-normal up to `longest`, `full` all of it.

    Sorted within pools of 50 batches, as the library's sampler and Hugging Face's length grouping do.
    """
    rng = np.random.default_rng(seed)
    pool = 50 * passages
    lengths = np.full(pool, longest)
    if kind == "mixed":
        lengths = np.clip(rng.lognormal(np.log(longest / 5), 0.8, pool), 8, longest).astype(int)
    lengths = np.sort(lengths)[::-1].reshape(-1, passages)
    batches = []
    for group in lengths[rng.permutation(len(lengths))[:count]]:
        inputs = [max(4, round(0.87 * length)) for length in group]
        labels = [max(2, round(0.27 * length)) for length in group]
        batches.append(_pad(rng, inputs, labels, rows))
    return batches


def shuffled(batches: list[Batch], seed: int = 0) -> list[Batch]:
    """The same passages in batches drawn at random, which is what is left to padding without length grouping."""
    rng = np.random.default_rng(seed)
    width = max(batch["input_ids"].shape[1] for batch in batches)
    label_width = max(batch["labels"].shape[1] for batch in batches)
    whole = {
        name: torch.cat([F.pad(b[name], (0, size - b[name].shape[1]), value=fill) for b in batches])
        for name, size, fill in (
            ("input_ids", width, 0),
            ("attention_mask", width, 0),
            ("labels", label_width, -100),
        )
    }
    order = torch.from_numpy(rng.permutation(len(whole["labels"])))
    parts = order.split(len(batches[0]["labels"]))
    return [_trim({name: tensor[part] for name, tensor in whole.items()}) for part in parts]


def _trim(batch: Batch) -> Batch:
    width = -(-int(batch["attention_mask"].sum(1).max()) // 8) * 8
    label_width = -(-int((batch["labels"] != -100).sum(1).max()) // 8) * 8
    widths = {"labels": label_width}
    return {name: tensor[:, : widths.get(name, width)].contiguous() for name, tensor in batch.items()}


def _pad(rng: np.random.Generator, inputs: list[int], labels: list[int], rows: int) -> Batch:
    shape = len(inputs), -(-max(inputs) // 8) * 8
    label_shape = len(labels), -(-max(labels) // 8) * 8
    mask = np.arange(shape[1])[None] < np.array(inputs)[:, None]
    asked = np.arange(label_shape[1])[None] < np.array(labels)[:, None]
    return {
        "input_ids": torch.from_numpy(np.where(mask, rng.integers(3, rows - 120, shape), 0)),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "labels": torch.from_numpy(np.where(asked, rng.integers(3, rows - 120, label_shape), -100)),
    }


def stock_model(base: str, options: argparse.Namespace, adapter: AdapterConfig, dtype: torch.dtype) -> torch.nn.Module:
    """The usual recipe."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(
        base_directory(base),
        dtype=dtype,
        attn_implementation="sdpa",
        quantization_config=nf4 if options.quantization == "nf4" else None,
        device_map={"": options.device},
    )
    if options.quantization == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=options.checkpointing)
    elif options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    targets = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_rslora=True,
        task_type="SEQ_2_SEQ_LM",
    )
    return get_peft_model(model, config).train()


def stock_loss(model: torch.nn.Module, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    device = batch["labels"].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(**batch).loss


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def product_rate(dtype: torch.dtype, device: str) -> float:
    """FLOPs a second of one large matrix product: what the device can do."""
    width = 8192 if device.startswith("cuda") else 1024  # a GPU would be done with the small one before it is told
    left = torch.randn(width, width, device=device).to(dtype)
    times = []
    for _ in range(8):
        started = clock(device)
        left @ left
        times.append(clock(device) - started)
    return 2 * width**3 / min(times)


def compare(
    ways: dict[str, tuple[torch.nn.Module, Callable[[Batch], torch.Tensor]]], batches: list[Batch], device: str
) -> dict[str, Any]:
    """Seconds of each way, the ways taking turns on each batch; the first batch warms up, on a GPU all of them."""
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        for name, (model, _) in ways.items()
    }
    seconds = dict.fromkeys(ways, 0.0)
    ratios = []
    warming = batches if device.startswith("cuda") else batches[:1]  # a GPU's allocator and kernels learn each shape
    for number, batch in enumerate([*warming, *batches]):
        taken = {}
        for name, (_, loss) in ways.items():
            started = clock(device)
            loss({key: tensor.to(device) for key, tensor in batch.items()}).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            taken[name] = clock(device) - started
        if number >= len(warming):
            ratios.append(taken["stock"] / taken["ours"])
            for name, value in taken.items():
                seconds[name] += value
    tokens = sum(int(b["attention_mask"].sum()) + int((b["labels"] != -100).sum()) for b in batches)
    padded = sum(b["input_ids"].numel() + b["labels"].numel() for b in batches)
    return {
        "ratio": round(seconds["stock"] / seconds["ours"], 3),
        "ratio_of_batches": [round(float(q), 3) for q in np.quantile(ratios, [0, 0.5, 1])],
        "padding_share_of_stock": round(1 - tokens / padded, 3),
        **{f"{name}_tokens_per_second": round(tokens / value, 1) for name, value in seconds.items()},
    }


def flops(base: str, batches: list[Batch], *, checkpointing: bool) -> float:
    """4 (6 with recomputation) a parameter and token that is no padding; the head's are never recomputed."""
    shape = read_shape(base)
    each = 6 if checkpointing else 4
    inputs = sum(int(batch["attention_mask"].sum()) for batch in batches)
    labels = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    encoder = sum(a * b for a, b in shape.block_matrices(decoder=False)) * shape.encoder_blocks
    across = 2 * shape.width * shape.attention_width * shape.decoder_blocks  # keys and values of the inputs
    decoder = sum(a * b for a, b in shape.block_matrices(decoder=True)) * shape.decoder_blocks - across
    return each * (inputs * (encoder + across) + labels * decoder) + 4 * labels * shape.rows * shape.width


def installed(*packages: str) -> dict[str, str | None]:
    """Their versions; None for one that is absent."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="builtin:mt5-mini")
    parser.add_argument("--shape", choices=SHAPES, help="a base of random weights of this mT5's shape, instead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quantization", choices=["none", "nf4"], default="none")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--longest", type=int, default=256, help="tokens of a full passage")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.shape is None:
        run(options.base, options)
        return
    options.base = f"random mt5-{options.shape}"
    with tempfile.TemporaryDirectory() as directory:
        write_random_base(Path(directory), options.shape)
        run(directory, options)


def run(source: str, options: argparse.Namespace) -> None:
    """Compare the ways on the base at `source`; `options.base` is what it is called."""
    scheme = Quantization.named(options.quantization)
    base: Base = load_base(source, quantization=scheme, device=options.device)
    dtype = getattr(torch, base.precision)
    adapter = AdapterConfig(rank=options.rank, dropout=0.0)
    ours = add_adapter(base, adapter).train()
    stock = stock_model(source, options, adapter, dtype)
    shape = read_shape(source)
    recomputed = shape.encoder_blocks + shape.decoder_blocks if options.checkpointing else 0

    def our_loss(batch: Batch) -> torch.Tensor:
        loss, count = token_loss(ours, batch, base, checkpointed_blocks=recomputed)
        return loss / count

    ways = {"ours": (ours, our_loss), "stock": (stock, lambda batch: stock_loss(stock, batch, dtype))}
    rate = product_rate(dtype, options.device)
    name = f"{options.base} {options.quantization}{' recomputed' if recomputed else ''} {options.device}"
    row: dict[str, Any] = {
        "configuration": vars(options),
        "precision": base.precision,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else f"{platform.machine()} CPU",
        "versions": installed("torch", "transformers", "peft", "bitsandbytes"),
        "product_flops_per_second": round(rate),
    }
    rows = base.model.get_input_embeddings().num_embeddings
    size = {"passages": options.passages, "count": options.batches, "rows": rows, "longest": options.longest}
    grouped = make_batches("mixed", **size)
    sets = {"mixed": grouped, "mixed, not grouped": shuffled(grouped), "full": make_batches("full", **size)}
    for kind, batches in sets.items():
        found = compare(ways, batches, options.device)
        tokens = sum(int(b["attention_mask"].sum()) + int((b["labels"] != -100).sum()) for b in batches)
        work = flops(source, batches, checkpointing=options.checkpointing) / tokens
        found["share_of_physical_limit"] = round(work * found["ours_tokens_per_second"] / rate, 3)
        row[kind] = found
        print(name, "|", kind, json.dumps(found), flush=True)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = row
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
