"""Which adapter each row of a batch uses: one for all, none, or one a row.

PEFT holds the adapters, and its own layers stay switched off: to change its active adapter takes a walk over the whole
model, and its mixed batches run one small product after the other for each adapter in each layer. Here each linear
layer asks what is chosen, so that to choose costs nothing; and for rows of different adapters these are stacked and
each row picks its own, so that a layer costs two batched products however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F

from t5refine_peft.registry.layout import AdapterLayout


@dataclass(frozen=True)
class _LowRank:
    """One layer of one adapter: (rank, in), (out, rank), and LoRA's scale."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


@dataclass(frozen=True)
class _Stack:
    """One layer's adapters, those of lower rank filled up with zeros; the first is the base's, all zeros.

    Attributes:
        down: (adapters, in, rank).
        up: (adapters, rank, out).
    """

    down: torch.Tensor
    up: torch.Tensor


class AdapterSwitch:
    """Adds, in each linear layer of the base, what the chosen adapters of a PEFT model add."""

    def __init__(self, model: PeftModel, *, dtype: torch.dtype) -> None:
        """Take over from PEFT's layers; the base alone is chosen.

        Args:
            model: with plain LoRA adapters.
            dtype: that mixed batches compute in.
        """
        self._dtype = dtype
        self._one: str | None = None
        self._rows: torch.Tensor | None = None
        self._mixed: tuple[str, ...] = ()
        model.base_model.disable_adapter_layers()
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._adapters = {layer.get_base_layer(): _adapters_of(layer) for layer in layers}
        self._stacks: dict[nn.Module, _Stack] = {}
        self._scales = torch.empty(0)
        """(adapters, 1, 1) fp32, LoRA's scale, which is one for all layers of an adapter; the base's comes first."""
        self._spread: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By beams a row: the adapters' numbers, (rows,), and scales, (rows, 1, 1), of the next forwards."""
        self._hooks = [layer.register_forward_hook(self._add) for layer in self._adapters]

    def remove(self) -> None:
        """Leave the layers alone from now on."""
        for hook in self._hooks:
            hook.remove()
        self._stacks, self._mixed = {}, ()

    def choose(self, adapter: str | None) -> None:
        """Use one adapter for all rows; None is the base alone."""
        self._one, self._rows = adapter, None

    def mix(self, adapters: Sequence[str]) -> None:
        """Get ready for batches whose rows use one of these each, or none."""
        names = tuple(sorted(adapters))
        if names != self._mixed:
            self._stacks, self._mixed = {}, ()  # first: there may be no room for the last ones beside the new
            self._stacks = {
                layer: _stack(layer, [own.get(name) for name in names], self._dtype)
                for layer, own in self._adapters.items()
                if not own.keys().isdisjoint(names)
            }
            scales = {name: low_rank.scale for own in self._adapters.values() for name, low_rank in own.items()}
            self._scales = torch.tensor([0.0, *(scales[name] for name in names)])[:, None, None]
            self._mixed = names

    def numbers(self, adapters: Sequence[str | None]) -> torch.Tensor:
        """What `assign` takes for rows of these adapters, (rows,) int64."""
        return torch.tensor([0 if name is None else 1 + self._mixed.index(name) for name in adapters])

    def assign(self, rows: torch.Tensor) -> None:
        """Say which adapter each row of the next forwards uses, (rows,); beams of a row follow one another."""
        self._one, self._rows, self._spread = None, rows, {}

    def _add(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        """inputs: (rows, tokens, in); output: (rows, tokens, out). None leaves the base's output as it is."""
        if self._one is not None:
            own = self._adapters[layer].get(self._one)
            if own is None:
                return None
            narrow = F.linear(inputs[0].to(own.down.dtype), own.down) * own.scale
            return output + F.linear(narrow, own.up).to(output.dtype)
        stack = self._stacks.get(layer) if self._rows is not None else None
        if self._rows is None or stack is None:
            return None
        hidden = inputs[0].to(stack.down.dtype)
        rows, scales = self._spread_over(self._rows, len(hidden) // len(self._rows))
        narrow = torch.bmm(hidden, stack.down[rows]) * scales  # in fp32, then rounded once, as for one adapter
        return output + torch.bmm(narrow.to(hidden.dtype), stack.up[rows]).to(output.dtype)

    def _spread_over(self, rows: torch.Tensor, beams: int) -> tuple[torch.Tensor, torch.Tensor]:
        if beams not in self._spread:
            spread = rows.repeat_interleave(beams)
            self._spread[beams] = spread, self._scales.to(spread.device)[spread]
        return self._spread[beams]


def stack_bytes(layouts: Sequence[AdapterLayout], *, dtype: torch.dtype) -> int:
    """What mixed batches of these adapters take on top of the adapters.

    In each layer that one of them adapts there is a copy for each, filled up to the layer's largest rank, and one of
    zeros for the base.
    """
    largest: dict[str, int] = {}
    for layout in layouts:
        for layer, shape in layout.layers.items():
            largest[layer] = max(largest.get(layer, 0), layout.rank * sum(shape))
    return (len(layouts) + 1) * sum(largest.values()) * dtype.itemsize


def _adapters_of(layer: LoraLayer) -> dict[str, _LowRank]:
    return {
        name: _LowRank(layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach(), layer.scaling[name])
        for name in layer.lora_A
    }


def _stack(layer: Any, adapters: Sequence[_LowRank | None], dtype: torch.dtype) -> _Stack:
    there = [own for own in adapters if own is not None]
    rank = max(own.down.shape[0] for own in there)
    device = there[0].down.device
    down = torch.zeros((len(adapters) + 1, layer.in_features, rank), dtype=dtype, device=device)
    up = torch.zeros((len(adapters) + 1, rank, layer.out_features), dtype=dtype, device=device)
    for number, own in enumerate(adapters, start=1):
        if own is not None:
            down[number, :, : own.down.shape[0]] = own.down.T
            up[number, : own.up.shape[1]] = own.up.T
    return _Stack(down, up)
