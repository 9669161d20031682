"""A quantised base on disk, so that it loads without its 16-bit source."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from transformers import PreTrainedModel

from t5refine_peft.config import Quantization
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.layers import FrozenEmbedding, QuantizedLinear
from t5refine_peft.modeling.matrices import Matrix
from t5refine_peft.storage import atomic_directory

RECORD_FILE = "quantization.json"
WEIGHTS_FILE = "quantized.safetensors"
_FORMAT = 1
_COPIED = ("config.json", "generation_config.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a saved quantised base says of itself."""

    quantization: Quantization
    tied: bool
    """Whether head and embedding were one matrix."""
    base: str
    """The base that it was made from, as the user named it."""
    fingerprint: str
    """Of that base's weights: adapters are made for these, however they are stored."""


def read_record(directory: Path) -> Record | None:
    """The record of a saved quantised base; None for any other directory.

    Raises:
        RefineError: it is broken, or of a later version.
    """
    path = directory / RECORD_FILE
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("format")
        if version != _FORMAT:
            raise RefineError(f"{path} has format {version}: this version reads {_FORMAT}; quantise the base anew")
        return Record(**{**fields, "quantization": Quantization(**fields["quantization"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefineError(f"{path} is broken ({error}); quantise the base anew") from None


def write_model(model: PreTrainedModel, record: Record, *, source: Path, directory: Path) -> None:
    """Write the quantised weights, the record, and the configuration and tokenizer of `source`.

    Raises:
        RefineError: the place can't be written to, or adapters are on the model.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise RefineError("the base has adapters on it: save it before they are loaded, or delete them first")
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        parts: dict[str, torch.Tensor] = {}
        if isinstance(module, QuantizedLinear | FrozenEmbedding):
            parts = {f"weight.{part}": buffer for part, buffer in module.matrix.named_buffers()}
        elif not isinstance(module, Matrix):
            parts = {f"{part}.values": weight for part, weight in module.named_parameters(recurse=False)}
        for part, tensor in parts.items():
            if id(tensor) not in seen:  # a matrix that is head and embedding is stored once
                seen.add(id(tensor))
                tensors[f"{name}.{part}"] = tensor.detach().contiguous()
    with atomic_directory(directory) as staged:
        save_file(tensors, staged / WEIGHTS_FILE, metadata={"format": "pt"})
        fields = {"format": _FORMAT, **asdict(record)}
        (staged / RECORD_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        for file in _COPIED:
            if (source / file).is_file():
                shutil.copyfile(source / file, staged / file)
