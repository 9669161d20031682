"""What tells a base from others and decides which adapters fit it, from a base in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.checkpoint import weight_files
from t5refine_peft.modeling.location import base_directory
from t5refine_peft.registry.fit import BaseIdentity
from t5refine_peft.storage import fingerprint_files


def identify(base: Base) -> BaseIdentity:
    """The identity of a base in memory, with adapters on it or without."""
    return BaseIdentity(
        name=base.name,
        fingerprint=base.fingerprint,
        tokenizer_fingerprint=base.vocabulary.fingerprint,
        layers=linear_shapes(base.model),
    )


def read_identity(base: str | Path) -> BaseIdentity:
    """The identity of a base on disk; its weights are hashed, not loaded.

    Raises:
        RefineError: there is no such base, or it lacks a file.
    """
    directory = base_directory(base)
    return BaseIdentity(
        name=str(base),
        fingerprint=fingerprint_files(weight_files(directory)),
        tokenizer_fingerprint=Vocabulary.load(directory).fingerprint,
        layers=linear_shapes(hollow_model(directory)),
    )


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of each linear layer, attention's and the feed-forward's, not the head, by name."""
    head = model.get_output_embeddings()
    return {
        name: (layer.out_features, layer.in_features) for name, layer in _linear_layers(model, "") if layer is not head
    }


def hollow_model(directory: Path) -> PreTrainedModel:
    """A model of the directory's configuration whose weights are zeros that take no memory.

    PEFT can put adapters on it and compute with them; a 13-billion-parameter base costs megabytes.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=weight.dtype).expand(weight.shape)  # one number in memory for all
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
    return model.eval()


def _linear_layers(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Linear | LoraLayer]]:
    """The linear layers below a module; an adapter's own matrices lie below a `LoraLayer` and are not the base's."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | LoraLayer):
            yield prefix + name, child
        else:
            yield from _linear_layers(child, f"{prefix}{name}.")
