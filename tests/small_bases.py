"""Small random bases of every kind that the library loads, in the official layout."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

KINDS = {
    "t5": ("t5", {"feed_forward_proj": "relu", "tie_word_embeddings": True}),
    "flan-t5": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "umt5": ("umt5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
"""Name -> (model type, what its published config.json says)."""


def write_base(directory: Path, tokenizer_dir: Path, *, kind: str, rows: int, width: int = 64) -> PreTrainedModel:
    """Write a random base of `kind` with an odd or even number of `rows`, and give transformers' own reading of it."""
    model_type, said = KINDS[kind]
    torch.manual_seed(sum(map(ord, kind)))
    config = AutoConfig.for_model(
        model_type,
        vocab_size=rows,
        d_model=width,
        d_ff=2 * width,
        d_kv=width // 2,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **said,
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    if not said["tie_word_embeddings"]:
        config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn(rows, width) * width**-0.5)
    model.save_pretrained(directory)
    for file in tokenizer_dir.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()


def dequantized(model: PreTrainedModel, like: PreTrainedModel) -> PreTrainedModel:
    """`like`, transformers' own model in fp32, with the numbers that the quantised `model` stands for."""
    for name, parameter in list(like.named_parameters(remove_duplicate=False)):
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        matrix = getattr(module, "matrix", None)
        if matrix is None:
            numbers = module.get_parameter(attribute).detach().float()
        else:
            numbers = matrix.gather(torch.arange(matrix.rows), torch.float32)
        assert numbers.shape == parameter.shape
        setattr(like.get_submodule(owner), attribute, torch.nn.Parameter(numbers, requires_grad=False))
    return like
