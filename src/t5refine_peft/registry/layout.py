"""What an adapter's files say it is, read from their headers before a weight is touched.

An adapter may come from anyone. Its configuration is taken only where it asks PEFT for plain LoRA: some of PEFT's other
options import a module by name, match layers with a regular expression of the file's, or change the base's own weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from t5refine_peft.errors import RefineError
from t5refine_peft.registry.files import CONFIG_FILE, WEIGHTS_FILE, read_object, short

Shape = tuple[int, ...]
_DTYPES = ("BF16", "F16", "F32")
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>[\w.]+)\.lora_(?P<side>[AB])\.weight")
_LAYER_NAME = re.compile(r"\w+(?:\.\w+)*")
_READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "peft_type", "task_type", "use_rslora"}
_WORDS = {"base_model_name_or_path", "peft_version", "revision"}
"""Keys that decide nothing about a saved adapter's answers."""
_PLAIN: dict[str, tuple[object, ...]] = {
    "alpha_pattern": ({},),
    "bias": ("none",),
    "ensure_weight_tying": (False,),
    "fan_in_fan_out": (False,),
    "inference_mode": (True, False),
    "init_lora_weights": (True, False, "gaussian"),  # PiSSA and the like change the base's weights
    "loftq_config": ({},),
    "lora_bias": (False,),
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
    "rank_pattern": ({},),
}
"""What the other keys hold in plain LoRA, where they are there and not null; those of `use_...` hold false.

Nothing else is taken, be it as empty as `{}`: some of PEFT's variants are asked for by that alone.
"""


@dataclass(frozen=True, kw_only=True)
class AdapterLayout:
    """A LoRA adapter as its headers describe it."""

    rank: int
    scale: float
    """What the product of an update's two matrices is multiplied by."""
    targets: frozenset[str]
    """The layers' names, or the last parts of them, that PEFT puts the adapter on."""
    layers: Mapping[str, tuple[int, int]]
    """(out_features, in_features) of each adapted layer, by its name in the base."""
    weights_bytes: int
    """Size of the weight file."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.rank * sum(rows + columns for rows, columns in self.layers.values())


def read_layout(directory: Path) -> AdapterLayout:
    """Read the headers of an adapter's two files and see that they agree.

    Raises:
        RefineError: a file is missing or broken, asks for more than plain LoRA, or holds a tensor that does not belong
            to it, of another rank, type or shape; all faults of a file in one message.
    """
    rank, scale, targets = _read_config(directory / CONFIG_FILE)
    path = directory / WEIGHTS_FILE
    shapes, faults = _sides(_read_header(path))
    layers = {}
    for layer in sorted({layer for layer, _ in shapes}):
        down, up = shapes.get((layer, "A")), shapes.get((layer, "B"))
        if down is None or up is None:
            faults.append(f"{layer} lacks lora_{'B' if up is None else 'A'}")
        elif len(down) != 2 or len(up) != 2 or not down[0] == up[1] == rank or 0 in (down[1], up[0]):
            faults.append(f"{layer} has the shapes {down} and {up}, not ({rank}, inputs) and (outputs, {rank})")
        else:
            layers[layer] = (up[0], down[1])
    if not shapes and not faults:
        faults.append("it holds no tensor")
    if faults:
        raise RefineError(
            f"{path} is not the LoRA adapter of rank {rank} that {CONFIG_FILE} describes: {_first(faults)}; take a "
            "sound copy of the adapter, or train it anew"
        )
    return AdapterLayout(rank=rank, scale=scale, targets=targets, layers=layers, weights_bytes=path.stat().st_size)


def _read_config(path: Path) -> tuple[int, float, frozenset[str]]:
    """Rank, scale and targets."""
    config = read_object(path)
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    targets: Any = config.get("target_modules")
    faults = []
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type must be 'LORA', found {short(config.get('peft_type'))}")
    if config.get("task_type") not in ("SEQ_2_SEQ_LM", None):
        faults.append(f"task_type must be 'SEQ_2_SEQ_LM', found {short(config.get('task_type'))}")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank < 1 << 20:
        faults.append(f"r must be a whole number above 0, found {short(rank)}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        faults.append(f"lora_alpha must be a number above 0, found {short(alpha)}")
    if not isinstance(config.get("use_rslora", False), bool):
        faults.append(f"use_rslora must be true or false, found {short(config['use_rslora'])}")
    if (
        not isinstance(targets, list)
        or not targets
        or not all(isinstance(name, str) and _LAYER_NAME.fullmatch(name) for name in targets)
    ):
        faults.append(f"target_modules must be a list of layers' names, found {short(targets)}")
    dropout = config.get("lora_dropout", 0.0)
    if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        faults.append(f"lora_dropout must be a number from 0 to below 1, found {short(dropout)}")
    for key in sorted(config.keys() - _READ):
        value = config[key]
        if key in _WORDS:
            if not isinstance(value, str | None):
                faults.append(f"{key} must be text, found {short(value)}")
        elif value is not None and not _is_plain(key, value):
            faults.append(f"{short(key)} is {short(value)}, which is not plain LoRA")
    if faults:
        raise RefineError(f"{path} can't be used: {_first(faults)}; expected the configuration of a plain LoRA adapter")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), frozenset(targets)


def _is_plain(key: str, value: object) -> bool:
    plain = _PLAIN.get(key, (False,) if key.startswith("use_") else ())
    return any(type(value) is type(allowed) and value == allowed for allowed in plain)  # 0 is not false


def _read_header(path: Path) -> dict[str, tuple[str, Shape]]:
    """Type and shape of each tensor; the library checks that they lie inside the file and apart."""
    if not path.is_file():
        others = sorted(other.name for other in path.parent.glob("adapter_model.*"))
        found = f"found {others[0]}, a pickle that could run code" if others else "found none"
        raise RefineError(
            f"{path.parent} holds no weights that can be trusted: expected {WEIGHTS_FILE}, {found}; save the adapter "
            "as safetensors, or take a whole copy"
        )
    try:
        with safe_open(path, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RefineError(
            f"{path} is no sound safetensors file ({short(reason)}); take a sound copy of the adapter, or train it anew"
        ) from None


def _sides(
    header: Mapping[str, tuple[str, Shape]],
) -> tuple[dict[tuple[str, str], Shape], list[str]]:
    """Shapes by layer and side, and what is wrong with the rest."""
    shapes, faults = {}, []
    for name, (dtype, shape) in sorted(header.items()):
        match = _TENSOR.fullmatch(name)
        if match is None:
            faults.append(f"it holds the unexpected tensor {short(name)}")
        elif dtype not in _DTYPES:
            faults.append(f"{name} is of type {dtype}, not one of {', '.join(_DTYPES)}")
        else:
            shapes[match["layer"], match["side"]] = shape
    return shapes, faults


def _first(faults: list[str]) -> str:
    """The first faults and how many there are more: a file from elsewhere may have thousands."""
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more
