"""Several domains in one adapter: PEFT's weighted combinations, without loading the base's weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file

from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.identity import hollow_model, read_identity
from t5refine_peft.modeling.location import base_directory
from t5refine_peft.modeling.lora import load_adapted, save_adapter
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.registry.card import adapter_fingerprint, write_card
from t5refine_peft.registry.files import WEIGHTS_FILE
from t5refine_peft.registry.layout import AdapterLayout, read_layout
from t5refine_peft.storage import atomic_directory

METHODS = (
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
)
"""PEFT's `combination_type`s. `cat` is the exact weighted sum of the updates, its rank the sum of the ranks; `svd` the
nearest update of a given rank; `linear` adds the small matrices, which is a rough approximation; the others prune the
updates first (TIES, Yadav et al. 2023; DARE, Yu et al. 2024)."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A combined adapter that was written."""

    path: Path
    """Its directory."""
    rank: int
    adapter_bytes: int
    """Size of its weight file."""
    relative_error: float
    """Frobenius norm of what the saved adapter's updates differ from the weighted sum of its parts', over that of the
    sum, all layers together. bf16 alone gives about 0.002; `linear` and pruning give far more."""


def combine_adapters(
    registry: AdapterRegistry,
    weights: Mapping[str, float],
    *,
    domain: str,
    base: str | Path | None = None,
    method: str = "cat",
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> Combination:
    """Combine adapters of one base by weights into a new one, which loads like any other.

    Args:
        registry: where the adapters lie, and the new one will.
        weights: of each adapter, by its name; two or more, negative ones too.
        domain: the new adapter's name.
        base: the base of all of them, of which only the configuration and tokenizer are loaded and the weights hashed;
            None takes the one in the first adapter's card.
        method: one of `METHODS`.
        density: share of the weights kept, for the methods that prune.
        rank: of the new adapter, for the methods that end in `svd`; None takes the highest of its parts.
        seed: of what DARE drops.

    Raises:
        RefineError: an adapter does not fit the base, or options that do not go together.
    """
    target = registry.free_place(domain)
    _check_options(weights, method, density, rank)
    first = next(iter(weights))
    base = base if base is not None else registry.base_of(first)
    identity = read_identity(base)
    layouts = {name: registry.check(name, identity) for name in weights}
    ranks = {name: layout.rank for name, layout in layouts.items()}
    if method != "cat" and not method.endswith("svd") and len(set(ranks.values())) > 1:
        raise RefineError(
            f"{method!r} needs adapters of one rank, found {ranks}; take 'cat', or {_nearest_svd(method)!r}"
        )
    side = min(min(shape) for layout in layouts.values() for shape in layout.layers.values())
    if rank is not None and rank > side:
        raise RefineError(f"rank must be at most {side}, the shorter side of the smallest matrix, found {rank}")
    with torch.random.fork_rng(), atomic_directory(target) as staged:
        torch.manual_seed(seed)
        model = _combined(registry, weights, base_directory(base), method, density, rank)
        model.peft_config["default"].base_model_name_or_path = str(base)
        save_adapter(model, staged)
        layout = read_layout(staged)
        error = _relative_error(registry, weights, layouts, staged, layout)
        if not math.isfinite(error):
            raise RefineError(f"the sum with the weights {dict(weights)} is too large for bf16; give smaller weights")
        parts = {
            name: {"weight": weight, "adapter_fingerprint": adapter_fingerprint(registry.find(name))}
            for name, weight in weights.items()
        }
        write_card(
            staged,
            {
                "domain": domain,
                "base": str(base),
                "base_fingerprint": identity.fingerprint,
                "tokenizer_fingerprint": identity.tokenizer_fingerprint,
                "combined_from": parts,
                "method": method,
                "density": density,
                "relative_error": error,
                "seed": seed,
            },
        )
    return Combination(path=target, rank=layout.rank, adapter_bytes=layout.weights_bytes, relative_error=error)


def _check_options(weights: Mapping[str, float], method: str, density: float | None, rank: int | None) -> None:
    faults = []
    if len(weights) < 2:
        faults.append(f"expected two adapters or more, found {', '.join(weights) or 'none'}")
    faults += [f"the weight of {name!r} must be a finite number" for name, w in weights.items() if not math.isfinite(w)]
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        faults.append(f"no method {method!r}: expected one of {', '.join(METHODS)}{hint}")
    else:
        prunes = method not in ("cat", "svd", "linear")
        if prunes and (density is None or not 0 < density <= 1):
            faults.append(f"{method!r} needs a density above 0 and up to 1, found {density}")
        if not prunes and density is not None:
            faults.append(f"{method!r} prunes nothing, so it takes no density")
        if rank is not None and not method.endswith("svd"):
            faults.append(f"the rank follows from the method {method!r}: only those with svd take one")
        if rank is not None and rank < 1:
            faults.append(f"rank must be at least 1, found {rank}")
    if faults:
        raise RefineError("; ".join(faults))


def _nearest_svd(method: str) -> str:
    return "svd" if method == "linear" else f"{method}_svd"


def _combined(
    registry: AdapterRegistry,
    weights: Mapping[str, float],
    directory: Path,
    method: str,
    density: float | None,
    rank: int | None,
) -> PeftModel:
    """A model without base weights whose adapter `default` is the combination; PEFT has no names with dots, we do."""
    parts = {f"part{number}": registry.find(name) for number, name in enumerate(weights)}
    (first, path), *others = parts.items()
    model = load_adapted(hollow_model(directory), path, name=first)
    for part, path in others:
        model.load_adapter(str(path), adapter_name=part)
    model.add_weighted_adapter(
        list(parts),
        [float(weight) for weight in weights.values()],
        "default",
        combination_type=method,
        svd_rank=rank,
        svd_full_matrices=False,
        density=density,
    )
    # PEFT has put the parts' scales into the matrices and means the new one to be 1, which alpha = r is for plain LoRA
    # but not where the scale is alpha / sqrt(r).
    config = model.peft_config["default"]
    config.use_rslora, config.lora_alpha = True, math.sqrt(config.r)
    return model


def _relative_error(
    registry: AdapterRegistry,
    weights: Mapping[str, float],
    layouts: Mapping[str, AdapterLayout],
    directory: Path,
    layout: AdapterLayout,
) -> float:
    """See `Combination.relative_error`; from the files, by LoRA's own formula."""
    tensors = {name: load_file(registry.find(name) / WEIGHTS_FILE) for name in weights}
    written = load_file(directory / WEIGHTS_FILE)
    difference = total = 0.0
    for layer, shape in layout.layers.items():
        wanted = torch.zeros(shape, dtype=torch.float64)
        for name, weight in weights.items():
            if layer in layouts[name].layers:
                wanted += weight * layouts[name].scale * _product(tensors[name], layer)
        difference += float((layout.scale * _product(written, layer) - wanted).square().sum())
        total += float(wanted.square().sum())
    return math.sqrt(difference / total) if total else 0.0


def _product(tensors: Mapping[str, torch.Tensor], layer: str) -> torch.Tensor:
    down, up = (tensors[f"base_model.model.{layer}.lora_{side}.weight"].double() for side in "AB")
    return up @ down
