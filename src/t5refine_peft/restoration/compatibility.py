"""Whether an adapter fits a base, told from its small files and the headers of its weights, before any is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.lora import WEIGHTS_FILE
from t5refine_peft.registry import AdapterRegistry

_BYTES_A_PARAMETER = 4
"""PEFT holds adapters in fp32."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An adapter that fits."""

    path: Path
    memory_bytes: int
    """What it takes in memory."""
    temperature: float
    """Its scores' calibration; 1 where its card has none."""
    damage_threshold: float | None
    """Words less probable than this are damage; None where its card has none."""


def check_adapter(registry: AdapterRegistry, name: str, base: Base) -> Fit:
    """See that the adapter was made for this base and tokenizer, and has the rank and shapes that it says.

    Raises:
        RefineError: it does not fit; nothing was loaded.
    """
    path = registry.find(name)
    registry.check_base(name, base_name=base.name, base_fingerprint=base.fingerprint)
    card = registry.card(name)
    pieces = card.get("tokenizer_fingerprint", base.vocabulary.fingerprint)
    if pieces != base.vocabulary.fingerprint:
        raise RefineError(
            f"the adapter {name!r} was trained with another tokenizer ({pieces}) than that of {base.name!r} "
            f"({base.vocabulary.fingerprint}); give the base that it was trained on"
        )
    shapes = _shapes(path / WEIGHTS_FILE)
    _check_shapes(name, _config(path / "adapter_config.json"), shapes, base.model)
    return Fit(
        path=path,
        memory_bytes=sum(rows * width for rows, width in shapes.values()) * _BYTES_A_PARAMETER,
        temperature=_number(card, "calibration", "temperature", path) or 1.0,
        damage_threshold=_number(card, "detection", "threshold", path),
    )


def _number(card: dict[str, Any], part: str, key: str, path: Path) -> float | None:
    value = (card.get(part) or {}).get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or (key == "temperature" and not value > 0):
        raise RefineError(f"{path / 'card.json'}: {part}.{key} must be a number, found {value!r}; train it anew")
    return float(value)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise RefineError(f"{path} is broken: expected a JSON object; train the adapter anew")
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise RefineError(f"{path} describes an adapter of kind {kind}: expected plain LoRA, which can share a batch")
    return config


def _shapes(path: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix, from the file's header."""
    try:
        with safe_open(path, framework="pt") as weights:
            shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RefineError(f"{path} is no safetensors file ({error}); train the adapter anew") from None
    odd = next((key for key, shape in shapes.items() if len(shape) != 2), None)
    if odd or not shapes:
        raise RefineError(f"{path} must hold LoRA's matrices, found {odd or 'nothing'}; train the adapter anew")
    return {key: (shape[0], shape[1]) for key, shape in shapes.items()}


def _check_shapes(name: str, config: dict[str, Any], shapes: dict[str, tuple[int, int]], model: nn.Module) -> None:
    modules = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    patterns = config.get("rank_pattern") or {}
    for key, (rows, width) in shapes.items():
        layer_name, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
        layer = modules.get(layer_name) or modules.get(layer_name + ".base_layer")
        if layer is None or part not in ("A.weight", "B.weight"):
            raise RefineError(f"the adapter {name!r} holds {key}, which belongs to no linear layer of the base")
        rank, side = (rows, width) if part == "A.weight" else (width, rows)
        expected = layer.in_features if part == "A.weight" else layer.out_features
        if side != expected:
            raise RefineError(
                f"the adapter {name!r} fits layers of width {side}, but {layer_name} of the base has {expected}; "
                "it was trained on a base of another size"
            )
        if not patterns and rank != config.get("r"):
            raise RefineError(
                f"the adapter {name!r} has matrices of rank {rank}, but its adapter_config.json says "
                f"{config.get('r')}; its files are not of one adapter"
            )
