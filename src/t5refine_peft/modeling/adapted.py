"""Frozen layers with adapters beside them, in few passes over memory; PEFT's own modules hold the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F

from t5refine_peft.modeling.layers import QuantizedLinear


@dataclass(frozen=True)
class _Adapter:
    """One layer's low-rank update, `scale * second @ first`."""

    first: torch.Tensor
    """(rank, width in)."""
    second: torch.Tensor
    """(width out, rank)."""
    scale: float
    dropout: float


def adapted_linears(hidden: torch.Tensor, *layers: Any) -> tuple[torch.Tensor, ...]:
    """What layers with the same input give: the frozen product and the adapter's, as PEFT has it.

    PEFT's layers cast the input to the adapter's fp32 and scale each output; here the small matrices are cast and
    scaled instead, and those that share an input are multiplied at once. The adapters' dropout is drawn once for the
    shared input.

    Args:
        hidden: (tokens, width in).
        layers: linear layers without bias, with one active LoRA adapter each or with none.

    Returns:
        For each layer (tokens, width out), of `hidden`'s type.
    """
    adapters = [_adapter(layer) for layer in layers]
    present = [adapter for adapter in adapters if adapter is not None]
    if present and len(present) < len(layers):
        return tuple(adapted_linears(hidden, layer)[0] for layer in layers)
    rate = present[0].dropout if present and layers[0].training else 0.0
    return _Adapted.apply(  # type: ignore[no-any-return, no-untyped-call]
        hidden,
        dropped(hidden, rate) if rate else None,
        [layer.base_layer if isinstance(layer, LoraLayer) else layer for layer in layers],
        [adapter.scale for adapter in present],
        *(adapter.first for adapter in present),
        *(adapter.second for adapter in present),
    )


def _adapter(layer: Any) -> _Adapter | None:
    if not isinstance(layer, LoraLayer) or layer.disable_adapters:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) > 1:
        raise ValueError(f"one adapter is trained at a time: expected one active, found {active}")
    if not active:
        return None
    name = active[0]
    dropout = layer.lora_dropout[name]
    return _Adapter(
        first=layer.lora_A[name].weight,
        second=layer.lora_B[name].weight,
        scale=layer.scaling[name],
        dropout=dropout.p if isinstance(dropout, nn.Dropout) else 0.0,
    )


def frozen_weight(layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """The (width out, width in) weights of a frozen layer as numbers of `dtype`."""
    if isinstance(layer, QuantizedLinear):
        return layer.matrix.tile(0, layer.out_features, dtype)
    return layer.weight.to(dtype)


class _Adapted(torch.autograd.Function):
    """Keeps the input and the (tokens, layers * rank) products with the first matrices; gradients for adapters only."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        dropped: torch.Tensor | None,
        frozen: Sequence[nn.Linear],
        scales: Sequence[float],
        *matrices: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        firsts, seconds = matrices[: len(scales)], matrices[len(scales) :]
        outputs = [hidden @ frozen_weight(layer, hidden.dtype).t() for layer in frozen]
        products: tuple[torch.Tensor, ...] = ()
        if firsts:
            seen = hidden if dropped is None else dropped
            products = torch.split(seen @ torch.cat(firsts).to(hidden.dtype).t(), [len(f) for f in firsts], dim=1)
            for output, product, second, scale in zip(outputs, products, seconds, scales, strict=True):
                output.addmm_(product, (second * scale).to(hidden.dtype).t())
        ctx.save_for_backward(hidden, dropped, *products, *matrices)
        ctx.frozen, ctx.scales = frozen, scales
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        count = len(ctx.scales)
        hidden, dropped, *rest = ctx.saved_tensors
        products, firsts, seconds = rest[:count], rest[count : 2 * count], rest[2 * count :]
        needs_hidden = ctx.needs_input_grad[0]
        by_hidden: torch.Tensor | None = None
        if needs_hidden:
            for gradient, layer in zip(gradients, ctx.frozen, strict=True):
                weight = frozen_weight(layer, hidden.dtype)
                by_hidden = gradient @ weight if by_hidden is None else by_hidden.addmm_(gradient, weight)
        if not count:
            return by_hidden, None, None, None
        by_product = torch.cat(
            [
                gradient @ (second * scale).to(hidden.dtype)
                for gradient, second, scale in zip(gradients, seconds, ctx.scales, strict=True)
            ],
            dim=1,
        )
        by_firsts = torch.split(by_product.t() @ (hidden if dropped is None else dropped), [len(f) for f in firsts])
        by_seconds = [
            (gradient.t() @ product).to(second.dtype) * scale
            for gradient, product, second, scale in zip(gradients, products, seconds, ctx.scales, strict=True)
        ]
        by_dropped: torch.Tensor | None = None
        if by_hidden is not None:
            first = torch.cat(firsts).to(hidden.dtype)
            if dropped is None:
                by_hidden.addmm_(by_product, first)
            else:
                by_dropped = by_product @ first
        return (
            by_hidden,
            by_dropped,
            None,
            None,
            *(gradient.to(first.dtype) for gradient, first in zip(by_firsts, firsts, strict=True)),
            *by_seconds,
        )


def dropped(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Dropout that keeps a byte a number for its gradient; `F.dropout` keeps a number on a CPU."""
    return torch.native_dropout(values, rate, True)[0]


def frozen_norm(hidden: torch.Tensor, norm: Any) -> torch.Tensor:
    """T5's norm, (tokens, width): no mean, no bias, inner sums in fp32, frozen weights."""
    return _FrozenNorm.apply(hidden, norm.weight, norm.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]


class _FrozenNorm(torch.autograd.Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.epsilon = epsilon
        return F.rms_norm(hidden, (hidden.shape[-1],), weight.to(hidden.dtype), epsilon)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        hidden, weight = ctx.saved_tensors
        exact = torch.promote_types(hidden.dtype, torch.float32)
        values, gradient = hidden.to(exact), gradients[0].to(exact) * weight
        scale = (values.square().mean(-1, keepdim=True) + ctx.epsilon).rsqrt_()
        along = (gradient * values).mean(-1, keepdim=True)
        return (gradient * scale).addcmul_(values, -along * scale.pow(3)).to(hidden.dtype), None, None
