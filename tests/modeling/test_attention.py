from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from t5refine_peft.modeling.attention import additive_mask, attend


def made(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_scaled_dot_product_attention_without_the_scale(masked: bool):
    torch.manual_seed(0)
    query, key, value = made(2, 3, 5, 4), made(2, 3, 7, 4), made(2, 3, 7, 4)
    visible = torch.rand(2, 5, 7) < 0.7
    visible[..., 0] = True
    bias = torch.randn(1, 3, 5, 7, dtype=torch.float64)
    mask = additive_mask(visible, bias, heads=3, dtype=torch.float64) if masked else None
    ours = attend(query, key, value, mask, dropout=0.0)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, mask, dropout=0.0), (query, key, value))


def test_dropped_probabilities_are_right_on_average_and_in_the_gradient():
    torch.manual_seed(0)
    query, key, value = made(1, 2, 3, 4), made(1, 2, 6, 4), made(1, 2, 6, 4)
    whole = attend(query, key, value, None, dropout=0.0)
    mean = torch.stack([attend(query, key, value, None, dropout=0.25) for _ in range(4000)]).mean(0)
    assert (mean - whole).abs().max() < 0.1

    def same_draw(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return attend(*tensors, None, dropout=0.25)

    assert not torch.allclose(same_draw(query, key, value), whole)
    assert torch.autograd.gradcheck(same_draw, (query, key, value))


def test_bf16_is_as_near_to_the_truth_as_pytorchs_own():
    torch.manual_seed(0)
    exact = [torch.randn(4, 4, 64, 32) for _ in range(3)]
    halved = [tensor.bfloat16() for tensor in exact]
    mask = torch.randn(1, 4, 64, 64)
    truth = F.scaled_dot_product_attention(*(t.float() for t in halved), attn_mask=mask, scale=1.0)
    ours = attend(*halved, mask, dropout=0.0)
    theirs = F.scaled_dot_product_attention(*halved, attn_mask=mask.bfloat16(), scale=1.0)
    assert ours.dtype == torch.bfloat16
    assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm()


def test_masks_are_not_copied_for_heads_and_rows_that_are_alike():
    visible = torch.ones(3, 8, 8, dtype=torch.bool).tril()
    assert additive_mask(visible, None, heads=4, dtype=torch.float32).stride(1) == 0
    bias = torch.randn(1, 4, 8, 8)
    assert additive_mask(None, bias, heads=4, dtype=torch.float32) is bias
    assert additive_mask(None, None, heads=4, dtype=torch.float32) is None
