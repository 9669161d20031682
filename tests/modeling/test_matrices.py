from __future__ import annotations

import bitsandbytes
import pytest
import torch

from t5refine_peft.modeling import matrices
from t5refine_peft.modeling.matrices import DenseMatrix, Int8Matrix, NF4Matrix

CPU = torch.device("cpu")


def gaussian(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) * 0.05


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", [(512, 128), (33, 32), (7, 5), (100, 96), (1031, 50)])
def test_the_error_is_that_of_the_format_at_any_width(shape):
    """bitsandbytes' own dequantisation on a CPU is wrong where the width is no multiple of 64: 29% at (33, 32)."""
    weight = gaussian(*shape)
    assert relative_error(NF4Matrix.quantize(weight, CPU).tile(0, shape[0], torch.float32), weight) < 0.1
    assert relative_error(Int8Matrix.quantize(weight, CPU).tile(0, shape[0], torch.float32), weight) < 0.009
    assert torch.equal(DenseMatrix(weight).tile(0, shape[0], torch.float32), weight)


@pytest.mark.parametrize("kind", [NF4Matrix, Int8Matrix])
@pytest.mark.parametrize("shape", [(700, 64), (1031, 50), (9, 3)])
def test_tiles_and_gathered_rows_are_parts_of_the_whole(kind, shape):
    matrix = kind.quantize(gaussian(*shape), CPU)
    whole = matrix.tile(0, shape[0], torch.float32)
    steps = range(0, shape[0], max(matrix.step, 256 // matrix.step * matrix.step))
    tiles = [matrix.tile(start, min(start + steps.step, shape[0]), torch.float32) for start in steps]
    assert torch.equal(torch.cat(tiles), whole)
    ids = torch.tensor([[0, shape[0] - 1], [shape[0] // 2, 0]])
    assert torch.allclose(matrix.gather(ids, torch.float32), whole[ids], atol=1e-7)


def test_nf4_is_what_bitsandbytes_makes_of_the_matrix(monkeypatch):
    """The packed weights, the scales and the numbers; and quantising in chunks changes nothing."""
    weight = gaussian(512, 192)
    monkeypatch.setattr(matrices, "_CHUNK_VALUES", matrices.NF4_BLOCK * matrices.NF4_GROUP)
    matrix = NF4Matrix.quantize(weight, CPU)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(matrix.packed, packed.view(-1).view(torch.int8))
    assert torch.equal(matrix.absmax, state.absmax)
    theirs = bitsandbytes.functional.dequantize_4bit(packed, state)
    assert torch.allclose(matrix.tile(0, 512, torch.float32), theirs, atol=1e-7)
    hidden = torch.randn(3, 192)
    product = bitsandbytes.matmul_4bit(hidden, matrix.packed.view(torch.uint8), quant_state=matrix.state())
    assert torch.allclose(product, hidden @ theirs.T, atol=1e-5)


def test_int8_in_chunks_is_int8_in_one_go_and_bears_rows_of_zeros(monkeypatch):
    weight = gaussian(37, 24)
    weight[5] = 0
    whole = Int8Matrix.quantize(weight, CPU)
    monkeypatch.setattr(matrices, "_CHUNK_VALUES", 48)
    parts = Int8Matrix.quantize(weight, CPU)
    assert torch.equal(whole.values, parts.values)
    assert torch.equal(whole.scale, parts.scale)
    assert not whole.tile(5, 6, torch.float32).any()
    assert int(whole.values.abs().amax()) == 127


def test_bytes_a_weight():
    """.516 for NF4 with double quantisation (4 bits, a byte a block of 64, 4 bytes a group), 1 and a scale for int8."""
    sizes = {
        kind: sum(buffer.nbytes for buffer in kind.quantize(gaussian(2048, 256), CPU).buffers()) / (2048 * 256)
        for kind in (NF4Matrix, Int8Matrix)
    }
    assert sizes[NF4Matrix] == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256), abs=0.003)
    assert sizes[Int8Matrix] == pytest.approx(1 + 4 / 256)
