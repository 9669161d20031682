"""Frozen matrices in many bits or few, read alike: a tile of rows, or some rows, at a time.

Each has `rows`, `width`, `step` (a tile begins at a multiple of so many rows), `tile` and `gather`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from t5refine_peft.config import StorageFormat

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

NF4_BLOCK = 64
"""Values that share a scale, as in QLoRA."""
NF4_GROUP = 256
"""Scales that share a scale: double quantisation."""
_CHUNK_VALUES = 1 << 24
"""Values quantised at once: 64 MiB in fp32. A multiple of block times group, so that the result is that of one go."""


class DenseMatrix(nn.Module):
    """A matrix stored as the numbers that it is."""

    step = 1

    def __init__(self, values: torch.Tensor) -> None:
        """Hold `values`, (rows, width), without copying them."""
        super().__init__()
        self.rows, self.width = values.shape
        self.values: torch.Tensor
        self.register_buffer("values", values.detach())

    def tile(self, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows `start` to `end` as (end - start, width) numbers of `dtype`; `start` is a multiple of `step`."""
        return self.values[start:end].to(dtype)

    def gather(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows `ids`, of any shape, as (*ids.shape, width) numbers of `dtype`."""
        return self.values[ids].to(dtype)


class Int8Matrix(nn.Module):
    """A byte a weight, and for each row the scale that makes its largest weight 127."""

    step = 1

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        """Hold `values`, (rows, width) int8, and `scale`, (rows,) fp32."""
        super().__init__()
        self.rows, self.width = values.shape
        self.values: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    @classmethod
    def quantize(cls, weight: torch.Tensor, device: torch.device) -> Int8Matrix:
        """Quantise `weight`, (rows, width) floats, on `device`, some rows at a time."""
        rows, width = weight.shape
        values = torch.empty(rows, width, dtype=torch.int8, device=device)
        scale = torch.empty(rows, device=device)
        at_once = max(1, _CHUNK_VALUES // width)
        for start in range(0, rows, at_once):
            part = weight[start : start + at_once].to(device, torch.float32)
            scale[start : start + at_once] = part.abs().amax(1) / 127
            divisor = scale[start : start + at_once].clamp_min(torch.finfo(torch.float32).tiny)
            values[start : start + at_once] = (part / divisor[:, None]).round_().to(torch.int8)
        return cls(values, scale)

    @property
    def stored(self) -> torch.Tensor:
        """The bytes."""
        return self.values

    def tile(self, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """See `DenseMatrix.tile`."""
        return _scaled(self.values[start:end], self.scale[start:end], dtype)

    def gather(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `DenseMatrix.gather`."""
        return _scaled(self.values[ids], self.scale[ids], dtype)


def _scaled(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each row times its scale, rounded once: a scale rounded to bf16 would bend the whole row."""
    return torch.mul(values, scale.unsqueeze(-1), out=torch.empty(values.shape, dtype=dtype, device=values.device))


class NF4Matrix(nn.Module):
    """4 bits a weight with double quantisation, in bitsandbytes' layout (Dettmers et al. 2023): .516 bytes a weight.

    The packed weights are typed int8: transformers' T5 casts the activations to the type of `wo`'s weights, save to
    int8, and a cast to bytes would make its output garbage without an error.
    """

    def __init__(
        self,
        *,
        rows: int,
        width: int,
        packed: torch.Tensor,
        absmax: torch.Tensor,
        nested_absmax: torch.Tensor,
        nested_code: torch.Tensor,
        offset: torch.Tensor,
    ) -> None:
        """Hold a quantised matrix.

        Args:
            rows: of the matrix.
            width: of the matrix.
            packed: (ceil(rows * width / 2),) int8, two weights each.
            absmax: (blocks,) uint8, the scale of each block of 64 weights, as an index into `nested_code`.
            nested_absmax: (groups,) fp32, the scale of each group of 256 of those.
            nested_code: (256,) fp32, the values that a scale can take.
            offset: () fp32, added to each block's scale.
        """
        super().__init__()
        self.rows, self.width = rows, width
        self.packed: torch.Tensor
        self.absmax: torch.Tensor
        self.nested_absmax: torch.Tensor
        self.nested_code: torch.Tensor
        self.offset: torch.Tensor
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("nested_absmax", nested_absmax)
        self.register_buffer("nested_code", nested_code)
        self.register_buffer("offset", offset)

    @classmethod
    def quantize(cls, weight: torch.Tensor, device: torch.device) -> NF4Matrix:
        """Quantise `weight`, (rows, width) floats, on `device`, some rows at a time."""
        from bitsandbytes import functional as bnb

        flat = weight.reshape(-1)
        packed, scales = [], []
        for start in range(0, len(flat), _CHUNK_VALUES):
            part = flat[start : start + _CHUNK_VALUES].to(device, torch.float32)
            bits, state = bnb.quantize_4bit(part, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False)
            packed.append(bits.view(-1).view(torch.int8))
            scales.append(state.absmax)
        absmax = torch.cat(scales)
        offset = absmax.mean()
        nested, state = bnb.quantize_blockwise(absmax - offset, blocksize=NF4_GROUP)
        return cls(
            rows=weight.shape[0],
            width=weight.shape[1],
            packed=torch.cat(packed),
            absmax=nested,
            nested_absmax=state.absmax,
            nested_code=state.code.to(device),
            offset=offset,
        )

    @property
    def stored(self) -> torch.Tensor:
        """The packed bytes, typed int8."""
        return self.packed

    @property
    def step(self) -> int:
        """A tile begins where a group of scales does."""
        group = NF4_BLOCK * NF4_GROUP
        return group // math.gcd(group, self.width)

    def state(self) -> QuantState:
        """The scales as bitsandbytes' own functions want them, for the whole matrix."""
        from bitsandbytes.functional import QuantState

        nested = QuantState(absmax=self.nested_absmax, code=self.nested_code, blocksize=NF4_GROUP, dtype=torch.float32)
        return QuantState(
            absmax=self.absmax,
            shape=torch.Size((self.rows, self.width)),
            code=_nf4_values(self.packed.device),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=torch.bfloat16,
            offset=self.offset,
            state2=nested,
        )

    def tile(self, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """See `DenseMatrix.tile`."""
        import bitsandbytes  # noqa: F401  # registers its operators

        first, last = start * self.width, end * self.width
        blocks = slice(first // NF4_BLOCK, -(-last // NF4_BLOCK))
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            self.absmax[blocks],
            self.nested_absmax[blocks.start // NF4_GROUP : -(-blocks.stop // NF4_GROUP)],
            self.nested_code,
            NF4_GROUP,
            torch.float32,
        ).add_(self.offset)
        bits = self.packed[first // 2 : -(-last // 2)].view(torch.uint8)
        # As one row of even length: bitsandbytes' CPU kernel is wrong where a row is no multiple of the block.
        exact = torch.float32 if dtype == torch.float64 else dtype
        flat: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            bits, absmax, NF4_BLOCK, "nf4", [2 * len(bits)], exact
        )
        return flat.view(-1)[: last - first].view(end - start, self.width).to(dtype)

    def gather(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `DenseMatrix.gather`."""
        at = ids.unsqueeze(-1) * self.width + torch.arange(self.width, device=ids.device)
        pair = self.packed.view(torch.uint8)[at // 2].int()
        value = torch.where(at % 2 == 0, pair >> 4, pair & 15)  # the first of two weights has the high bits
        block = at // NF4_BLOCK
        scale = self.nested_code[self.absmax[block].int()] * self.nested_absmax[block // NF4_GROUP] + self.offset
        return (_nf4_values(self.packed.device)[value] * scale).to(dtype)


def _nf4_values(device: torch.device) -> torch.Tensor:
    """The 16 values of NF4, (16,) fp32."""
    from bitsandbytes import functional as bnb

    values: torch.Tensor = bnb.get_4bit_type("nf4", device=device)
    return values


QuantizedMatrix = Int8Matrix | NF4Matrix
Matrix = DenseMatrix | QuantizedMatrix


def quantize(weight: torch.Tensor, storage: StorageFormat, device: torch.device) -> QuantizedMatrix:
    """Quantise `weight`, (rows, width) floats, to `int8` or `nf4` on `device`."""
    if storage == "int8":
        return Int8Matrix.quantize(weight, device)
    if storage == "nf4":
        return NF4Matrix.quantize(weight, device)
    raise ValueError(f"{storage} is no quantised format")
