"""Traps of the model and of how its weights are stored."""

from __future__ import annotations

import copy
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from t5refine_peft.offline import OfflineLoader
from t5refine_peft.traps.finding import Attempt, Status, tiny, tiny_mt5


def _head() -> tuple[Status, str]:
    from t5refine_peft.modeling.assembly import keep_ties_true

    model = tiny_mt5()
    claimed = bool(model.config.tie_word_embeddings)
    keep_ties_true(model, tied=False)
    model.tie_weights()
    if torch.equal(model.lm_head.weight, model.get_input_embeddings().weight):
        return "broken", "tie_weights overwrites the head with the embedding, whatever the flag says"
    return ("handled", "the configuration claims tied weights; set right") if claimed else ("ok", "the flag is true")


def _umt5() -> tuple[Status, str]:
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    from t5refine_peft.modeling.assembly import keep_ties_true

    model, ids = tiny(UMT5Config, UMT5ForConditionalGeneration), torch.arange(1, 5)[None]
    with torch.inference_mode():
        before = model(input_ids=ids, labels=ids).logits
        keep_ties_true(model, tied=False)
        model.tie_weights()
        after = model(input_ids=ids, labels=ids).logits
    if not torch.equal(before, after):
        return "broken", "the logits of umT5 change when it is said which weights are tied"
    return ("handled", "the flag that scales the logits stays as it is") if model.config.tie_word_embeddings else (
        "ok", "no flag scales the logits",
    )  # fmt: skip


def _kept_in_fp32() -> tuple[Status, str]:
    kept = getattr(tiny_mt5(), "_keep_in_fp32_modules", None) or []
    if "wo" not in kept:
        return "ok", "wo may be quantised"
    return "handled", "transformers keeps wo out of 4-bit; the base is not quantised by transformers' own switch"


def _quantised_wo() -> tuple[Status, str]:
    from t5refine_peft.modeling.layers import QuantizedLinear
    from t5refine_peft.modeling.matrices import quantize

    feed_forward = tiny_mt5().encoder.block[0].layer[1].DenseReluDense
    weight, hidden = feed_forward.wo.weight.detach(), torch.linspace(-1, 1, 32).view(2, 16)
    matrix = quantize(weight, "nf4", torch.device("cpu"))
    with torch.inference_mode():
        feed_forward.wo.weight.copy_(matrix.tile(0, len(weight), torch.float32))
        expected = feed_forward(hidden)
        feed_forward.wo = QuantizedLinear(matrix, dtype=torch.float32)
        if not torch.allclose(feed_forward(hidden), expected, atol=1e-5):
            return "broken", "transformers' feed-forward spoils what goes into a quantised wo"
    return "handled", "transformers' feed-forward leaves our quantised wo alone, whose stored bytes are int8"


def _k_bit_preparation() -> tuple[Status, str]:
    from peft import prepare_model_for_kbit_training

    model = copy.deepcopy(tiny_mt5()).bfloat16()
    model.is_loaded_in_4bit = True
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    upcast = model.get_input_embeddings().weight.dtype is torch.float32
    return (
        ("handled", "peft makes head and embedding fp32; it is not called") if upcast else ("ok", "nothing is upcast")
    )


def _bytes_stored_as_bf16() -> tuple[Status, str]:
    if find_spec("bitsandbytes") is None:
        return "ok", "there is no bitsandbytes"
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    weight = torch.linspace(-1, 1, 64 * 64).view(64, 64)
    layer.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", quant_storage=torch.bfloat16
    )
    layer = layer.to("cpu").eval()
    with torch.inference_mode():
        first, second = (layer(torch.eye(64, dtype=torch.bfloat16)) for _ in range(2))
    if torch.equal(first, second):
        return "ok", "4-bit bytes stored as bf16 give the same answer twice; ours are stored as int8"
    return "handled", "4-bit bytes stored as bf16 give another answer the second time; ours are stored as int8"


def _four_bit_offload() -> tuple[Status, str]:
    from accelerate import Accelerator

    model = tiny_mt5()
    model.is_loaded_in_4bit, model.hf_device_map = True, {"shared": "cpu", "lm_head": "disk"}
    try:
        Accelerator(cpu=True).prepare_model(model)
    except ValueError:
        return "handled", "accelerate refuses 4-bit with parts elsewhere; our layers say where they lie themselves"
    return "ok", "accelerate trains 4-bit with parts elsewhere"


def _merging() -> tuple[Status, str]:
    if find_spec("bitsandbytes") is None:
        return "ok", "there is no bitsandbytes"
    import bitsandbytes
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of just this
        torch.manual_seed(0)
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        model: Any = nn.Sequential(layer.to("cpu"))
        model.is_loaded_in_4bit = True
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        with torch.inference_mode():
            before = adapted(torch.eye(64))
            after = adapted.merge_and_unload()(torch.eye(64))
    moved = float((after - before).norm() / before.norm())
    told = f"merging into 4-bit moves the answers by {moved:.1%}"
    return ("handled", f"{told}; we merge into the unquantised base") if moved > 0.001 else ("ok", told)


def _hub_kernels() -> tuple[Status, str]:
    if find_spec("bitsandbytes") is None or find_spec("kernels") is None:
        return "ok", "bitsandbytes has nothing to ask a hub with"
    if isinstance(import_module("bitsandbytes.backends.cpu.ops").__loader__, OfflineLoader):
        return "handled", "bitsandbytes would ask a hub for kernels; the package kernels is hidden from it"
    return (
        "broken",
        "bitsandbytes asks a hub for CPU kernels where it is imported first; import t5refine_peft before it",
    )


ATTEMPTS: dict[str, Attempt] = {
    "mT5's head is not its embedding": _head,
    "umT5 scales its logits by the flag of the ties": _umt5,
    "wo is kept out of 4-bit": _kept_in_fp32,
    "wo in 4-bit": _quantised_wo,
    "k-bit preparation upcasts": _k_bit_preparation,
    "4-bit bytes stored as bf16": _bytes_stored_as_bf16,
    "4-bit with parts elsewhere": _four_bit_offload,
    "merging into 4-bit": _merging,
    "bitsandbytes asks a hub": _hub_kernels,
}
