"""Traps of the loss, of attention and of number formats."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn import functional as F

from t5refine_peft.traps.finding import Attempt, Status, tiny_mt5


def _fp16() -> tuple[Status, str]:
    overflows = bool(torch.tensor(70000.0).to(torch.float16).isinf())
    return ("handled", "T5 overflows fp16; bf16 or fp32 is used, fp16 is not offered") if overflows else ("ok", "")


def _emulated_bf16() -> tuple[Status, str]:
    from t5refine_peft.modeling.precision import choose_precision

    if not torch.cuda.is_available():
        return "ok", "no GPU; the CPU's number formats are timed"
    told, native = torch.cuda.is_bf16_supported(), torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = choose_precision(torch.device("cuda"))
    if native is False and chosen == "bfloat16":
        return "broken", "bf16 is emulated on this GPU, and chosen"
    return ("handled" if told != native else "ok"), f"native bf16: {native}; chosen: {chosen}"


def _contiguous() -> tuple[Status, str]:
    labels = torch.arange(1, 9).reshape(2, 4).t()
    try:
        tiny_mt5()(input_ids=torch.ones(4, 3, dtype=torch.long), labels=labels)
    except RuntimeError:
        return "handled", "mT5's own loss fails on labels that are not contiguous; ours are, and the loss is ours"
    return "ok", "labels need not be contiguous"


def _linear_cross_entropy() -> tuple[Status, str]:
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        return "ok", "this torch has none"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden, head = torch.randn(512, 16).bfloat16(), torch.randn(256, 16).bfloat16()
    labels = torch.arange(512) % 256
    exact = float(F.cross_entropy(hidden.float() @ head.float().t(), labels))
    told = float(function(hidden, head, labels))
    wrong = abs(told - exact) / exact > 0.005
    return ("handled" if wrong else "ok"), f"tells {told:.3f} for {exact:.3f} in bf16; not used"


def _attention() -> tuple[Status, str]:
    from t5refine_peft.modeling.forward import packed_forward

    model = tiny_mt5()
    kind = model.config._attn_implementation
    ids, labels = torch.arange(3, 11).view(2, 4), torch.arange(20, 26).view(2, 3)
    with torch.inference_mode():
        expected = float(model(input_ids=ids, labels=labels).loss)
        with packed_forward(model):
            states: Any = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        found = float(F.cross_entropy(model.lm_head(states.hidden), states.labels))
    if abs(found - expected) > 1e-4 * expected:
        return "broken", f"the training forward gives a loss of {found:.4f} where {kind} gives {expected:.4f}"
    return "handled", f"mT5 computes with {kind} on padded rows; the training forward gives its loss without them"


def _checkpointing() -> tuple[Status, str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tiny_mt5().gradient_checkpointing_enable()
    if any("deprecated" in str(warning.message) for warning in told):
        return "handled", "gradient_checkpointing has another name now; our forward computes blocks again by itself"
    return "ok", "gradient_checkpointing goes by its name"


ATTEMPTS: dict[str, Attempt] = {
    "fp16 overflows": _fp16,
    "emulated bf16": _emulated_bf16,
    "labels that are not contiguous": _contiguous,
    "linear_cross_entropy adds up in bf16": _linear_cross_entropy,
    "attention": _attention,
    "gradient checkpointing": _checkpointing,
}
