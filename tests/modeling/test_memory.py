from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save

from t5refine_peft import AdapterConfig, Quantization, RefineError, load_base, plan_memory
from t5refine_peft.modeling.activations import Activations, Batch
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.memory import _eight_bit_state_bytes, _Planner
from t5refine_peft.modeling.shapes import OFFICIAL_NAMES, Shape, read_shape

LEANEST = Quantization.nf4(head="nf4")
GIB = 2**30


def tracker() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "memory_tracker.py"
    spec = importlib.util.spec_from_file_location("memory_tracker", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_tracker"] = module
    spec.loader.exec_module(module)
    return module


def device_bytes(model: torch.nn.Module, *, trained: bool) -> int:
    tensors = [*((name, t) for name, t in model.named_parameters() if t.requires_grad == trained)]
    tensors += [] if trained else list(model.named_buffers())
    return sum({t.data_ptr(): t.untyped_storage().nbytes() for _, t in tensors}.values())


@pytest.mark.parametrize(
    "scheme", [Quantization.none(), Quantization.int8(), LEANEST, Quantization.nf4(embedding="int8")]
)
def test_weights_and_adapter_are_counted_to_the_byte(tiny_base: Path, scheme: Quantization):
    base = load_base(tiny_base, quantization=scheme, device="cpu", precision="bfloat16")
    plan = plan_memory(tiny_base, GIB, quantization=scheme, device="cpu")
    model = add_adapter(base, AdapterConfig())
    weights = sum(plan.parts[name] for name in ("linear_bytes", "head_bytes", "embedding_bytes", "norm_and_bias_bytes"))
    assert weights == device_bytes(model, trained=False)
    assert plan.parts["adapter_bytes"] == device_bytes(model, trained=True)
    assert plan.parts["gradient_bytes"] == plan.parts["adapter_bytes"]
    assert plan.parts["optimizer_bytes"] == 2 * plan.parts["adapter_bytes"]


def test_the_8_bit_optimiser_is_counted_as_bitsandbytes_makes_it():
    from bitsandbytes.optim import AdamW8bit

    weight = torch.nn.Parameter(torch.randn(16, 512))
    small = torch.nn.Parameter(torch.randn(16, 32))
    optimizer = AdamW8bit([weight, small], lr=1e-3)
    weight.grad, small.grad = torch.ones_like(weight), torch.ones_like(small)
    optimizer.step()
    own = [
        value for state in optimizer.state.values() for name, value in state.items() if name[:5] in ("state", "absma")
    ]
    counted = _eight_bit_state_bytes(16 * 512) + _eight_bit_state_bytes(16 * 32)
    assert counted == sum(tensor.nbytes for tensor in own if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize(
    ("passages", "checkpointed_blocks", "dropout", "on_gpu"),
    [(1, 5, 0.1, True), (1, 0, 0.1, True), (3, 2, 0.0, True), (2, 5, 0.1, False), (2, 0, 0.0, False)],
)
def test_activations_are_within_a_tenth_of_what_a_tracker_sees(passages, checkpointed_blocks, dropout, on_gpu):
    shape = Shape(
        name="", rows=500, width=256, inner=640, heads=4, head_width=64, encoder_blocks=2, decoder_blocks=3, gated=True,
        tied=False, bias_tables=2, buckets=32, dropout=dropout,
    )  # fmt: skip
    adapter = AdapterConfig(dropout=dropout)
    seen = tracker().tracked_activations(
        shape, quantization=LEANEST, adapter=adapter, passages=passages, input_tokens=256, label_tokens=128,
        checkpointed_blocks=checkpointed_blocks, on_gpu=on_gpu,
    )  # fmt: skip
    planner = _Planner(shape, GIB, adapter, "bfloat16", "cuda" if on_gpu else "cpu")
    plan = planner.plan(LEANEST, Batch(passages=passages, input_tokens=256, label_tokens=128), checkpointed_blocks)
    names = ("shared_bytes", "checkpoint_bytes", "live_layer_bytes", "dequantization_bytes")
    planned = sum(plan.parts[name] for name in names)
    assert 0.95 * seen["activation_bytes"] < planned < 1.35 * seen["activation_bytes"]
    assert seen["adapter_parameters"] * 4 == plan.parts["adapter_bytes"]


def test_the_leanest_plans_meet_their_ceilings():
    ceilings = {"small": 1.0, "base": 1.0, "large": 1.5, "xl": 3.0}
    for size, ceiling in ceilings.items():
        plan = plan_memory(f"google/mt5-{size}", int(ceiling * GIB), quantization=LEANEST, batch=1)
        assert plan.fits, (size, plan.total_bytes / GIB)
    eight = plan_memory("google/mt5-xl", int(5.5 * GIB), quantization=LEANEST, batch=8)
    assert eight.fits
    assert eight.micro_batch_tokens == 8 * 768
    assert plan_memory("google/mt5-xl", 6 * 10**9).quantization == Quantization.int8()


def test_it_takes_the_least_lossy_scheme_then_the_most_passages_then_the_fewest_recomputed_blocks():
    rich = plan_memory("google/mt5-base", 40 * GIB)
    assert (rich.quantization, rich.batch, rich.checkpointed_blocks) == (Quantization.none(), 16, 0)
    last = rich
    for budget in (20, 10, 6, 4, 3, 2, 1.5, 1.2, 1, 0.9, 0.8):
        plan = plan_memory("google/mt5-base", int(budget * GIB))
        assert plan.fits
        order = [Quantization.none(), Quantization.int8(), Quantization.nf4(), LEANEST]
        rank, before = order.index(plan.quantization), order.index(last.quantization)
        assert rank >= before
        if rank == before:
            assert plan.batch <= last.batch
            if plan.batch == last.batch:
                assert plan.checkpointed_blocks >= last.checkpointed_blocks
        more = {"quantization": plan.quantization, "batch": plan.batch + 1}
        assert plan.batch == 16 or not plan_memory("google/mt5-base", int(budget * GIB), **more).fits
        last = plan
    assert last.quantization != Quantization.none()


def test_what_is_named_is_planned_as_named():
    plan = plan_memory("google/mt5-large", 20 * GIB, quantization=Quantization.nf4(), batch=3)
    assert (plan.quantization, plan.batch) == (Quantization.nf4(), 3)
    assert plan.host_bytes == 250_112 * 1024 * 2


def test_what_does_not_fit_says_why_and_what_would():
    plan = plan_memory("google/mt5-xxl", 6 * 10**9)
    assert not plan.fits
    assert plan.advice.startswith("google/mt5-xxl needs 7.3")
    assert "or take a smaller base" in plan.advice
    assert (
        "store the base as nf4 layers" in plan_memory("google/mt5-xl", 3 * GIB, quantization=Quantization.none()).advice
    )
    assert "take 4 passages at once" in plan_memory("google/mt5-xl", 3 * GIB, quantization=LEANEST, batch=16).advice
    long = plan_memory("google/mt5-small", int(0.75 * GIB), quantization=LEANEST, input_tokens=4096, label_tokens=2048)
    assert "take passages of 2048 tokens" in long.advice


@pytest.mark.parametrize(
    ("budget", "batch", "advice", "settings"),
    [
        (4, 8, "store the base as nf4 layers, int8 head.*", [("nf4", 8, 512)]),
        (3, 8, "store the base as nf4 layers, int8 head.* and take 2 passages at once", [("nf4", 2, 512)]),
        (2.5, 8, "store .*, nf4 head.* and take passages of 256 tokens, one at a time", [("leanest", 1, 256)]),
        (8.2, 9, "store the base as int8.*, or take one passage at a time", [("int8", 9, 512), ("none", 1, 512)]),
        (2.2, 1, "store .*, nf4 head.* and give 2.51 GiB, or take a smaller base", []),
    ],
)
def test_what_is_advised_fits_with_all_else_as_it_was(budget, batch, advice, settings):
    asked = plan_memory("google/mt5-xl", int(budget * GIB), quantization=Quantization.none(), batch=batch)
    assert re.search(f"are given; {advice}$", asked.advice), asked.advice
    for name, passages, tokens in settings:
        scheme = LEANEST if name == "leanest" else Quantization.named(name)
        options = {"quantization": scheme, "input_tokens": tokens, "label_tokens": tokens // 2}
        assert plan_memory("google/mt5-xl", int(budget * GIB), batch=passages, **options).fits


@pytest.mark.parametrize(("size", "megabytes"), [("base", 14), ("large", 37), ("xl", 71)])
def test_an_adapter_of_an_official_shape_is_a_small_file_without_the_embedding(size, megabytes):
    model = tracker().meta_model(read_shape(f"google/mt5-{size}"), Quantization.none(), AdapterConfig(rank=16))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert all(".lora_" in name for name in state)
    written = save({name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in state.items()})
    assert 0.95 * megabytes * 10**6 < len(written) <= megabytes * 10**6


def test_more_of_anything_takes_more():
    def total(**changes) -> int:
        options = {"quantization": LEANEST, "batch": 2, **changes}
        return plan_memory("google/mt5-base", 1, **options).total_bytes

    usual = total()
    assert usual < total(batch=3)
    assert usual < total(adapter=AdapterConfig(rank=32))
    assert usual < total(input_tokens=1024)
    assert usual < total(label_tokens=512)
    assert usual < total(precision="float32")
    assert usual < total(quantization=Quantization.int8()) < total(quantization=Quantization.none())
    parts = Activations(
        read_shape(OFFICIAL_NAMES[0]), AdapterConfig(), Batch(passages=1, input_tokens=9, label_tokens=9), 2, True
    )
    assert parts.block(decoder=True).kept > parts.block(decoder=False).kept > parts.block(decoder=False).input


@pytest.mark.parametrize("name", ["budget_bytes", "batch", "max_batch", "input_tokens", "label_tokens"])
def test_amounts_of_nothing_are_refused(name: str):
    options = {"budget_bytes": GIB, name: 0}
    with pytest.raises(RefineError, match=f"{name} must be above 0, found 0"):
        plan_memory("google/mt5-base", **options)
