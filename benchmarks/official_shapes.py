"""Random bases of the published mT5s' shapes: what is measured on them needs no download."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MT5Config, MT5ForConditionalGeneration

from t5refine_peft.modeling.location import base_directory

SHAPES = {
    "small": {"d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    "base": {"d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
    "xl": {"d_model": 2048, "d_ff": 5120, "num_heads": 32, "num_layers": 24},
}
ROWS = 250_112


def official_config(name: str) -> MT5Config:
    return MT5Config(vocab_size=ROWS, d_kv=64, feed_forward_proj="gated-gelu", dropout_rate=0.0, **SHAPES[name])


def write_random_base(directory: Path, name: str, *, seed: int = 0) -> None:
    """Write random bf16 weights with T5's own variances, and the built-in base's tokenizer."""
    config = official_config(name)
    with torch.device("meta"):
        model = MT5ForConditionalGeneration(config)
    norms = {f"{where}.weight" for where, module in model.named_modules() if "norm" in where.rpartition(".")[2]}
    inner = config.num_heads * config.d_kv
    scales = {"shared": 1.0, "q": (config.d_model * config.d_kv) ** -0.5, "o": inner**-0.5, "wo": config.d_ff**-0.5}
    torch.manual_seed(seed)
    tensors = {}
    for where, shape in {
        **{k: v.shape for k, v in model.named_parameters()},
        "lm_head.weight": (ROWS, config.d_model),
    }.items():
        if where in norms:
            tensors[where] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        scale = scales.get(where.split(".")[-2], config.d_model**-0.5)
        tensors[where] = nn.init.normal_(torch.empty(shape, dtype=torch.bfloat16), std=scale)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)
    for file in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(base_directory("builtin:mt5-mini") / file, directory / file)
