"""Several adapters in one batch: each row of the batch gets its own.

PEFT's mixed batches run one small product after the other for each adapter in each layer. Here the adapters are stacked
and each row picks its own, so that a layer costs two batched products however many adapters there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn


@dataclass(frozen=True)
class _Stack:
    """One layer's adapters, those of lower rank filled up with zeros; the first is the base's, all zeros.

    Attributes:
        down: (adapters, in, rank).
        up: (adapters, rank, out), with LoRA's scale.
    """

    down: torch.Tensor
    up: torch.Tensor


class AdapterMix:
    """The adapters `names` on a base, for batches whose rows use different ones.

    Within `active()` the model is the base, and its linear layers add to each row what its adapter adds.
    """

    def __init__(self, model: PeftModel, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._model = model
        self._numbers = {name: number for number, name in enumerate(names, start=1)}
        self._layers = {module: _stack(module, names) for module in model.modules() if isinstance(module, LoraLayer)}
        self._rows: torch.Tensor | None = None

    @property
    def size_bytes(self) -> int:
        """Of the stacked copies."""
        return sum(stack.down.nbytes + stack.up.nbytes for stack in self._layers.values())

    def numbers(self, adapters: Sequence[str | None]) -> torch.Tensor:
        """The adapter of each text as `assign` takes it, (texts,) int64."""
        return torch.tensor([0 if name is None else self._numbers[name] for name in adapters])

    def assign(self, rows: torch.Tensor) -> None:
        """Say which adapter each row of the next forwards uses; beams of a row follow one another."""
        self._rows = rows

    @contextmanager
    def active(self) -> Iterator[PeftModel]:
        """Within this context the model's rows use the adapters of `assign`."""
        with self._model.disable_adapter():
            hooks = [
                layer.get_base_layer().register_forward_hook(self._hook(stack)) for layer, stack in self._layers.items()
            ]
            try:
                yield self._model
            finally:
                for hook in hooks:
                    hook.remove()
                self._rows = None

    def _hook(self, stack: _Stack) -> Any:
        def add(_layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            """inputs: (rows, tokens, in); output: (rows, tokens, out)."""
            if self._rows is None:
                raise RuntimeError("no row has an adapter: call assign() before the forward")
            hidden = inputs[0].to(stack.down.dtype)
            rows = self._rows.repeat_interleave(len(hidden) // len(self._rows))
            update = torch.bmm(torch.bmm(hidden, stack.down[rows]), stack.up[rows])
            return output + update.to(output.dtype)

        return add


def _stack(layer: LoraLayer, names: Sequence[str]) -> _Stack:
    found = {name: (layer.lora_A[name].weight, layer.lora_B[name].weight) for name in names if name in layer.lora_A}
    first_down, first_up = next(iter(found.values()), (torch.empty(1, layer.in_features), torch.empty(1, 1)))
    rank = max((down.shape[0] for down, _ in found.values()), default=1)
    outputs = first_up.shape[0] if found else layer.out_features
    stack = _Stack(
        down=first_down.new_zeros((len(names) + 1, layer.in_features, rank)),
        up=first_down.new_zeros((len(names) + 1, rank, outputs)),
    )
    for number, name in enumerate(names, start=1):
        if name in found:
            down, up = found[name]
            stack.down[number, :, : down.shape[0]] = down.T
            stack.up[number, : up.shape[1]] = up.T * layer.scaling[name]
    return stack
