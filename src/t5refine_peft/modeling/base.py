"""Load any T5, mT5 or umT5 faithfully: its head as the checkpoint has it, its tokenizer's own ids."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.location import base_directory
from t5refine_peft.modeling.precision import Precision, choose_precision
from t5refine_peft.storage import fingerprint_files

MODEL_TYPES = ("t5", "mt5", "umt5")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A frozen model with its vocabulary, and what tells it from others."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    name: str
    """As the user gave it: a path, a hub id, or `builtin:...`."""
    fingerprint: str
    """Of the weight files: an adapter fits the base whose fingerprint its card names."""
    precision: Precision

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.model.device
        return device

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which every forward of the model runs: bf16 where the base is bf16, else none."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def load_base(base: str | Path, *, device: str | None = None, precision: Literal["auto"] | Precision = "auto") -> Base:
    """Load a base model in the official layout.

    Args:
        base: a directory with config.json, spiece.model and weights (safetensors or pytorch_model.bin), a hub id, or
            `builtin:mt5-mini`.
        device: `cpu`, `cuda`, `cuda:1`; None takes the GPU where there is one.
        precision: of the frozen weights and of computing. `auto` is bf16 where the hardware has it, else fp32; fp16 is
            not offered, since T5's activations overflow it.

    Raises:
        RefineError: no such model, a model of another type, or a directory that lacks a file.
    """
    directory = base_directory(base)
    model_type = _read_config(directory).get("model_type")
    if model_type not in MODEL_TYPES:
        raise RefineError(f"{base} is a model of type {model_type!r}: expected one of {', '.join(MODEL_TYPES)}")
    weights = weight_files(directory)
    Vocabulary.load(directory)  # a missing tokenizer is told before gigabytes are read
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = choose_precision(target) if precision == "auto" else precision
    model = AutoModelForSeq2SeqLM.from_pretrained(
        directory, dtype=getattr(torch, chosen), local_files_only=True, attn_implementation="sdpa"
    )
    restore_head_flag(model)
    model.requires_grad_(False).eval().to(target)
    return Base(
        model=model,
        vocabulary=Vocabulary.load(directory, model_rows=model.get_input_embeddings().num_embeddings),
        name=str(base),
        fingerprint=fingerprint_files(weights),
        precision=chosen,
    )


def weight_files(directory: Path) -> list[Path]:
    """The files of a model's weights.

    Raises:
        RefineError: there are none.
    """
    weights = [file for pattern in _WEIGHTS for file in directory.glob(pattern)]
    if not weights:
        raise RefineError(f"{directory} holds no weights: expected model.safetensors or pytorch_model.bin")
    return weights


def restore_head_flag(model: PreTrainedModel) -> None:
    """Set `tie_word_embeddings` to what is true of the loaded weights.

    `MT5Config` and `UMT5Config` say `True` whatever the file says; a later `tie_weights()` would then overwrite the
    head with the embedding. Compared by value.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    model.config.tie_word_embeddings = head is embedding or torch.equal(head, embedding)


def _read_config(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefineError(f"{directory} is no model directory: expected config.json in it") from None
    except ValueError as error:
        raise RefineError(f"{path} is broken: {error}") from None
    return config if isinstance(config, dict) else {}
