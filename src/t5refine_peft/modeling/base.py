"""Load any T5, mT5 or umT5 faithfully: its head as the checkpoint has it, its tokenizer's own ids."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from t5refine_peft.config import DEVICE_NAME, Quantization
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.assembly import assemble
from t5refine_peft.modeling.checkpoint import Checkpoint, weight_files
from t5refine_peft.modeling.location import base_directory
from t5refine_peft.modeling.placement import Placement
from t5refine_peft.modeling.precision import Precision, choose_precision
from t5refine_peft.modeling.stored import WEIGHTS_FILE, Record, read_record, write_model
from t5refine_peft.modeling.weights import PublishedWeights, StoredWeights
from t5refine_peft.storage import fingerprint_files

MODEL_TYPES = ("t5", "mt5", "umt5")


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
    quantization: Quantization
    """How its weights are stored."""

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


def load_base(
    base: str | Path,
    *,
    quantization: Quantization | None = None,
    device: str | None = None,
    embedding_device: str | None = None,
    precision: Literal["auto"] | Precision = "auto",
) -> Base:
    """Load a base model in the official layout.

    The weights are read and quantised one by one, so that memory stays near the size of the finished model.

    Args:
        base: a directory with config.json, spiece.model and weights (safetensors or pytorch_model.bin), or one that
            `save_quantized` wrote; a hub id; or `builtin:mt5-mini`.
        quantization: how the frozen weights are stored; None takes the base as it is.
        device: where the model computes: `cpu`, `cuda`, `cuda:1`; None takes the GPU where there is one.
        embedding_device: where the embedding lies; None puts an unquantised one on the host where the layers are
            quantised, and on `device` elsewhere. On the host it costs a few megabytes of transfer a step.
        precision: of the frozen weights and of computing. `auto` is bf16 where the hardware has it, else fp32; fp16 is
            not offered, since T5's activations overflow it.

    Raises:
        RefineError: no such model, no such device, a model of another type, a directory that lacks a file, weights that
            don't fit config.json, or a base that was saved with another quantization.
    """
    if precision not in ("auto", *get_args(Precision)):
        why = "T5's activations overflow fp16, so it is not offered; " if "16" in str(precision) else ""
        raise RefineError(f"no precision {precision!r}: {why}expected auto, bfloat16 or float32")
    directory = base_directory(base)
    model_type = _read_config(directory).get("model_type")
    if model_type not in MODEL_TYPES:
        raise RefineError(f"{base} is a model of type {model_type!r}: expected one of {', '.join(MODEL_TYPES)}")
    record = read_record(directory)
    files = [directory / WEIGHTS_FILE] if record else weight_files(directory)
    Vocabulary.load(directory)  # a missing tokenizer is told before gigabytes are read
    target = choose_device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise RefineError(f"device {device}: PyTorch sees no GPU here; take --device cpu, or see t5refine doctor")
    placement = Placement(
        quantization=_agreed(quantization, record, directory),
        precision=choose_precision(target) if precision == "auto" else precision,
        device=target,
        embedding_device=choose_device(embedding_device) if embedding_device else None,
    )
    checkpoint = Checkpoint(files)
    weights = StoredWeights(checkpoint, tied=record.tied) if record else PublishedWeights(checkpoint)
    model = assemble(directory, weights, placement)
    if target.type == "cuda":
        torch.cuda.empty_cache()  # what quantising took for a moment would stay reserved beside the plan of memory
    return Base(
        model=model,
        vocabulary=Vocabulary.load(directory, model_rows=model.get_input_embeddings().num_embeddings),
        name=str(base),
        fingerprint=record.fingerprint if record else fingerprint_files(files),
        precision=placement.precision,
        quantization=placement.quantization,
    )


def choose_device(device: str | None) -> torch.device:
    """The device asked for, be it here or not; with None the GPU where PyTorch sees one.

    Raises:
        RefineError: there are no devices of that name.
    """
    if device is not None and not DEVICE_NAME.fullmatch(device):
        raise RefineError(f"no device {device!r}: expected cpu, cuda or cuda:1")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def save_quantized(base: Base, directory: str | Path) -> None:
    """Save a quantised base, so that `load_base(directory)` needs its 16-bit source no more.

    Adapters fit it as they fit the source: it keeps the fingerprint of the source's weights.

    Raises:
        RefineError: the base is not quantised, has adapters on it, or the place can't be written to.
    """
    if not base.quantization.quantized:
        raise RefineError(f"{base.name} is not quantised: load it with a quantization, or copy its directory")
    embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    record = Record(
        quantization=base.quantization,
        tied=head.weight is embedding.weight,
        base=base.name,
        fingerprint=base.fingerprint,
    )
    write_model(base.model, record, source=base_directory(base.name), directory=Path(directory))


def _agreed(asked: Quantization | None, record: Record | None, directory: Path) -> Quantization:
    """The scheme to load in: the one asked for, or that in which the base was saved."""
    if record is None:
        return asked or Quantization.none()
    if asked not in (None, record.quantization):
        raise RefineError(
            f"{directory} was saved with {record.quantization}, not with {asked}; leave the quantization out, or load "
            f"{record.base} with it"
        )
    return record.quantization


def _read_config(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefineError(f"{directory} is no model directory: expected config.json in it") from None
    except ValueError as error:
        raise RefineError(f"{path} is broken: {error}") from None
    return config if isinstance(config, dict) else {}
