"""Frozen layers over quantised matrices: they compute with the dequantised weights and keep none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from t5refine_peft.modeling.matrices import DenseMatrix, Matrix, NF4Matrix, QuantizedMatrix
from t5refine_peft.modeling.precision import computing_dtype


class QuantizedLinear(nn.Linear):
    """A linear layer without bias whose frozen weights are quantised; gradients flow through it to its input.

    It is an `nn.Linear` to PEFT, which puts its adapters around it. Its `weight` is the stored bytes, to be looked at
    for their device and type alone.
    """

    def __init__(self, matrix: QuantizedMatrix, *, dtype: torch.dtype) -> None:
        """Compute with `matrix`, (out_features, in_features), in `dtype`, or in autocast's type where that is on."""
        nn.Module.__init__(self)  # nn.Linear's own would make weights
        self.out_features, self.in_features = matrix.rows, matrix.width
        self.matrix = matrix
        self._dtype = dtype
        self.register_parameter("bias", None)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The stored bytes, int8."""
        return self.matrix.stored

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        hidden = input.to(computing_dtype(input.device, self._dtype))
        if isinstance(self.matrix, NF4Matrix) and hidden.is_cuda:
            import bitsandbytes

            packed = self.matrix.packed.view(torch.uint8)
            output: torch.Tensor = bitsandbytes.matmul_4bit(hidden, packed, quant_state=self.matrix.state())
            return output
        return _Multiply.apply(hidden, self.matrix)  # type: ignore[no-any-return, no-untyped-call]


class _Multiply(torch.autograd.Function):
    """The product with a frozen matrix, dequantised once more for the gradient instead of being kept."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, matrix: QuantizedMatrix) -> torch.Tensor:
        ctx.matrix = matrix
        return F.linear(hidden, matrix.tile(0, matrix.rows, hidden.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        matrix = ctx.matrix
        return gradient @ matrix.tile(0, matrix.rows, gradient.dtype), None


class FrozenEmbedding(nn.Module):
    """An embedding that is quantised, or stays in the host's memory while the model computes elsewhere."""

    def __init__(self, matrix: Matrix, *, dtype: torch.dtype, stays: bool = False) -> None:
        """Look tokens up in `matrix`, (tokens, width).

        Args:
            matrix: the weights.
            dtype: of what is looked up.
            stays: whether the weights stay on their device when the model is moved.
        """
        super().__init__()
        self.num_embeddings, self.embedding_dim = matrix.rows, matrix.width
        self.matrix = matrix
        self._dtype = dtype
        self._stays = stays

    @property
    def weight(self) -> torch.Tensor:
        """The stored numbers or bytes."""
        return self.matrix.values if isinstance(self.matrix, DenseMatrix) else self.matrix.stored

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look up (...) ids; (..., width), on the ids' device."""
        return self.matrix.gather(input.to(self.weight.device), self._dtype).to(input.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FrozenEmbedding:
        """What moves a module or changes its type: not this one, where it stays."""
        if not self._stays:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
