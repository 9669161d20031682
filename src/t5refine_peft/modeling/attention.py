"""Attention over packed rows, by the kernel that is fastest where it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


def additive_mask(
    visible: torch.Tensor | None, bias: torch.Tensor | None, *, heads: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """What is added to the scores: the position bias where a key is visible, the lowest number where it is not.

    Args:
        visible: (rows, queries, keys) bool; None where all are.
        bias: (1, heads, queries, keys); None is no bias.
        heads: of the attention.
        dtype: of the result.

    Returns:
        (rows or 1, heads, queries, keys), without a copy for each head or row where they are alike; None adds nothing.
    """
    if bias is not None:
        bias = bias.to(dtype).contiguous()  # T5 makes it with the heads last, which attention kernels don't take
    if visible is None:
        return bias
    added = bias if bias is not None else visible.new_zeros((1, 1, 1, 1), dtype=dtype)
    return torch.where(visible[:, None], added, torch.finfo(dtype).min).expand(-1, heads, -1, -1)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *, dropout: float
) -> torch.Tensor:
    """T5's attention: scores are not scaled.

    On a GPU this is PyTorch's SDPA. Its CPU kernel with a mask is slower than matrix products and a softmax at the
    lengths that passages have (measured with 104 to 320 places: 2 to 2.5 times, with the gradient).

    Args:
        query: (rows, heads, queries, width).
        key: (rows, heads, keys, width).
        value: (rows, heads, keys, width).
        mask: (rows or 1, heads, queries, keys), added to the scores; see `mask_dtype`.
        dropout: share of the probabilities that is dropped.
    """
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=1.0)
    return _Attention.apply(query, key, value, mask, dropout)  # type: ignore[no-any-return, no-untyped-call]


def mask_dtype(query: torch.Tensor) -> torch.dtype:
    """In which numbers `attend` wants its mask: SDPA the queries', ours those of its scores, which are exact."""
    return query.dtype if query.is_cuda else torch.promote_types(query.dtype, torch.float32)


class _Attention(torch.autograd.Function):
    """Scores and softmax in fp32 (or fp64), products in the queries' type; keeps the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        exact = mask_dtype(query)
        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        if mask is None:
            scores = torch.bmm(q.to(exact), k.to(exact).transpose(1, 2))
        else:
            added = mask.expand(len(query), -1, -1, -1).flatten(0, 1)
            scores = torch.baddbmm(added, q.to(exact), k.to(exact).transpose(1, 2))
        probabilities = scores.softmax(-1).to(query.dtype)
        kept = torch.empty_like(probabilities).bernoulli_(1 - dropout).div_(1 - dropout) if dropout else None
        ctx.save_for_backward(q, k, v, probabilities, kept)
        ctx.shape = query.shape
        return torch.bmm(probabilities if kept is None else probabilities * kept, v).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        q, k, v, probabilities, kept = ctx.saved_tensors
        gradient = gradients[0].reshape(q.shape)
        used = probabilities if kept is None else probabilities * kept
        by_value = torch.bmm(used.transpose(1, 2), gradient)
        by_probability = torch.bmm(gradient, v.transpose(1, 2))
        if kept is not None:
            by_probability = by_probability * kept
        by_score = torch._softmax_backward_data(by_probability, probabilities, -1, probabilities.dtype)
        by_query = torch.bmm(by_score, k)
        by_key = torch.bmm(by_score.transpose(1, 2), q)
        rows, heads = ctx.shape[:2]
        by_key, by_value = (g.view(rows, heads, *g.shape[1:]) for g in (by_key, by_value))
        return by_query.view(ctx.shape), by_key, by_value, None, None
