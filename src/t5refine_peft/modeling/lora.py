"""Low-rank adapters on a base: which matrices, with which scale, saved how."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from t5refine_peft.config import AdapterConfig
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.identity import linear_shapes
from t5refine_peft.registry.files import WEIGHTS_FILE


def add_adapter(base: Base, config: AdapterConfig) -> PeftModel:
    """Put a fresh adapter on every linear layer of the base but the head; only the adapter is trained, in fp32."""
    lora = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=linear_layers(base),
        use_rslora=True,
    )
    with _old_name_asked_for():
        model = get_peft_model(base.model, lora)
    model.peft_config["default"].base_model_name_or_path = base.name  # PEFT has put the directory there
    return model


def load_adapted(model: PreTrainedModel, directory: Path, *, name: str = "default") -> PeftModel:
    """Put the saved adapter in `directory` on a model that has none, for use and not for training."""
    with _old_name_asked_for():
        return PeftModel.from_pretrained(model, str(directory), adapter_name=name)


@contextmanager
def _old_name_asked_for() -> Iterator[None]:
    """PEFT 0.21 asks a model of transformers 5 for `is_gradient_checkpointing`, which answers rightly but warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def linear_layers(base: Base) -> list[str]:
    """Names of the linear layers: attention's and the feed-forward's, not the head."""
    return sorted({name.rpartition(".")[2] for name in linear_shapes(base.model)})


def save_adapter(model: PeftModel, directory: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write PEFT's two files, the weights in `dtype` and nothing but the adapter's.

    Raises:
        OSError: the directory takes no more (safetensors' own writer would raise an error of its own).
    """
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    written = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    (directory / WEIGHTS_FILE).write_bytes(save(written, metadata={"format": "pt"}))
    config = model.peft_config["default"]
    config.inference_mode, was = True, config.inference_mode
    try:
        config.save_pretrained(str(directory))
    finally:
        config.inference_mode = was


def reload_adapter(model: PeftModel, directory: Path) -> None:
    """Take the weights of a saved adapter, so that what is measured is what was saved."""
    set_peft_model_state_dict(model, load_file(directory / WEIGHTS_FILE))
