"""Cross-entropy over a frozen head in one sweep over the vocabulary, without the logits.

With the head W frozen, the gradient of a token's loss by its hidden state h is the mean of W's rows, weighted with the
softmax of W h, less the label's row: attention with the head as keys and values. So a running maximum, a running sum
and a running weighted sum, as in online softmax (Milakov and Gimelshein 2018) and FlashAttention (Dao et al. 2022),
give loss and gradient together, exactly. Each tile of the head is read and dequantised once, and no more than a tile's
logits exist at a time: for mT5 they would fill a gigabyte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.layers import QuantizedLinear
from t5refine_peft.modeling.matrices import DenseMatrix, Matrix
from t5refine_peft.modeling.precision import computing_dtype

TILE_BYTES_CPU, TILE_BYTES_GPU = 8 << 20, 32 << 20
"""What a tile's rows, logits and weights may take together: on a CPU about its cache, on a GPU enough for products that
fill it, and little beside a base of any size."""
_PRODUCT_BYTES = 16 << 20
"""What a product may take on its way into the accumulator."""


@dataclass(frozen=True)
class LabelScores:
    """What a model believes of given labels.

    Attributes:
        log_probabilities: (...) fp32, of each label; 0 where it is ignored.
        predictions: (..., top) int64, the most probable tokens, most probable first; -1 where the label is ignored.
    """

    log_probabilities: torch.Tensor
    predictions: torch.Tensor


def frozen_head_cross_entropy(
    hidden: torch.Tensor,
    head: nn.Linear | torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of `labels` under the logits `hidden @ head.T`, which are never held.

    Equals `F.cross_entropy` of these logits, save that it is 0 where all labels are ignored. The head gets no gradient.
    Products are computed in autocast's type where it is on, else in that of `hidden`; sums in fp32, or fp64 for fp64.

    >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    >>> head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> loss = frozen_head_cross_entropy(hidden, head, torch.tensor([0, -100]))
    >>> print(f"{loss.item():.4f}")
    0.6803
    >>> loss.backward()
    >>> hidden.grad
    tensor([[-0.3399,  0.3399],
            [ 0.0000,  0.0000]])

    Args:
        hidden: (..., width) what the head would get.
        head: a linear layer without bias, quantised by this library or not; or its weights, (rows, width).
        labels: (...) int64, rows of the head or `ignore_index`.
        ignore_index: the label of tokens that don't count.
        label_smoothing: share of the target that is spread evenly over all rows, from 0 to 1.
        num_items_in_batch: what the sum over the tokens is divided by, such as the tokens of all micro-batches; None
            is the number of labels that count.

    Returns:
        () the loss, fp32 (fp64 for fp64), in nats. Its gradient by `hidden` has been computed already.

    Raises:
        RefineError: shapes that don't fit, a label beyond the head, a head with a bias.
    """
    if not 0 <= label_smoothing <= 1:
        raise RefineError(f"label_smoothing must lie between 0 and 1, found {label_smoothing}")
    matrix, counted, kept = _prepare(hidden, head, labels, ignore_index)
    states = hidden.reshape(-1, hidden.shape[-1])
    states = states if kept is None else states[kept]
    total: torch.Tensor = _FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
        states.to(computing_dtype(hidden.device, hidden.dtype)), matrix, counted, label_smoothing
    )
    if num_items_in_batch is None:
        num_items_in_batch = max(1, len(counted))
    return total / num_items_in_batch


@torch.no_grad()
def label_scores(
    hidden: torch.Tensor,
    head: nn.Linear | torch.Tensor,
    labels: torch.Tensor,
    *,
    top: int = 1,
    ignore_index: int = -100,
) -> LabelScores:
    """Each label's log-probability and the most probable tokens, in the same sweep and without the logits.

    Args:
        hidden: (..., width) what the head would get.
        head: see `frozen_head_cross_entropy`.
        labels: (...) int64.
        top: how many of the most probable tokens to give; 1 is the arg-max.
        ignore_index: the label of tokens that are left out.

    Raises:
        RefineError: as `frozen_head_cross_entropy`.
    """
    matrix, counted, kept = _prepare(hidden, head, labels, ignore_index)
    states = hidden.reshape(-1, hidden.shape[-1])
    states = states if kept is None else states[kept]
    swept = _sweep(
        states.to(computing_dtype(hidden.device, hidden.dtype)),
        matrix,
        counted,
        gradient=False,
        top=min(top, matrix.rows),
    )
    chosen = swept.label_logits - swept.log_totals
    if kept is None:
        return LabelScores(chosen.view(labels.shape), swept.predictions.view(*labels.shape, -1))
    log_probabilities = chosen.new_zeros(labels.numel()).index_copy_(0, kept, chosen)
    predictions = swept.predictions.new_full((labels.numel(), swept.predictions.shape[1]), -1)
    predictions.index_copy_(0, kept, swept.predictions)
    return LabelScores(log_probabilities.view(labels.shape), predictions.view(*labels.shape, -1))


def head_inputs(model: nn.Module, head: nn.Module, **inputs: Any) -> torch.Tensor:
    """What `model`'s `head` gets for these inputs, (batch, tokens, width), and what it gives is never computed.

    The model's own forward runs as ever, wrapped or not, so that these states have all that the model does to them
    before the head, such as the scaling of a tied T5's or a umT5's.
    """
    head.forward = _identity
    try:
        hidden: torch.Tensor = model(**inputs).logits
    finally:
        del head.forward  # the class's own comes forth again
    return hidden


def _identity(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _prepare(
    hidden: torch.Tensor, head: nn.Linear | torch.Tensor, labels: torch.Tensor, ignore_index: int
) -> tuple[Matrix, torch.Tensor, torch.Tensor | None]:
    """The head's matrix, the labels that count, (tokens,), and their places where some don't."""
    if isinstance(head, nn.Linear) and head.bias is not None:
        raise RefineError("the head has a bias: expected T5's head, which has none")
    matrix = (
        head.matrix
        if isinstance(head, QuantizedLinear)
        else DenseMatrix(head.weight if isinstance(head, nn.Linear) else head)
    )
    if hidden.shape[:-1] != labels.shape or hidden.shape[-1] != matrix.width:
        raise RefineError(
            f"expected hidden states of {(*labels.shape, matrix.width)} for these labels and this head, found "
            f"{tuple(hidden.shape)}"
        )
    flat = labels.reshape(-1)
    kept = (flat != ignore_index).nonzero().squeeze(1)
    counted = flat if len(kept) == len(flat) else flat[kept]
    if len(counted):
        low, high = (int(value) for value in torch.aminmax(counted))
        if low < 0 or high >= matrix.rows:
            wrong = low if low < 0 else high
            raise RefineError(
                f"a label is {wrong}: expected {ignore_index} or a row of the head, 0 to {matrix.rows - 1}"
            )
    return matrix, counted, None if len(kept) == len(flat) else kept


class _FrozenHeadLoss(torch.autograd.Function):
    """The summed loss; its gradient is found in the forward pass and multiplied by what comes from above."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, matrix: Matrix, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        swept = _sweep(hidden, matrix, labels, gradient=wanted, smoothing=smoothing)
        losses = swept.log_totals - (1 - smoothing) * swept.label_logits
        if smoothing:
            losses -= smoothing * swept.mean_logits
        if wanted:
            ctx.save_for_backward(swept.gradient)
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None, None, None


@dataclass
class _Swept:
    """What one sweep finds, for each token: () tensors of (tokens,) unless said."""

    label_logits: torch.Tensor
    log_totals: torch.Tensor
    """The log of the sum of all logits' exponentials."""
    mean_logits: torch.Tensor
    predictions: torch.Tensor
    """(tokens, top)"""
    gradient: torch.Tensor
    """(tokens, width), in the type of the hidden states."""


def _sweep(
    hidden: torch.Tensor,
    matrix: Matrix,
    labels: torch.Tensor,
    *,
    gradient: bool,
    smoothing: float = 0.0,
    top: int = 0,
) -> _Swept:
    """Go over the head once; `hidden` is (tokens, width), `labels` (tokens,) rows of the head."""
    with torch.autocast(hidden.device.type, enabled=False):
        tokens, width = hidden.shape
        wide = torch.promote_types(hidden.dtype, torch.float32)
        highest = torch.full((tokens,), -torch.inf, dtype=wide, device=hidden.device)
        others = torch.zeros_like(highest)  # sum of exp(logit - highest) over all rows but the label's
        label_logits = torch.zeros_like(highest)
        row_sum = highest.new_zeros(width)
        best, best_rows = highest.new_empty(tokens, 0), labels.new_empty(tokens, 0)
        accumulator = highest.new_zeros((tokens, width) if gradient else (0, 0))
        label_rows = torch.empty_like(hidden if gradient else hidden[:0])
        for start, end, here in _tiles(matrix, hidden, labels):
            rows = matrix.tile(start, end, hidden.dtype)
            logits = _product(hidden, rows.t(), wide)
            own = labels[here] - start  # `here` are the tokens whose label lies in this tile
            label_logits[here] = logits[here, own]
            if top:
                best, best_rows = _merge_top(best, best_rows, logits, start, top)
            before, highest = highest, torch.maximum(highest, logits.amax(1))
            weights = logits.sub_(highest.unsqueeze(1)).exp_()
            weights[here, own] = 0  # kept apart: where the model is sure of the label, the gradient is the small rest
            shrink = (before - highest).exp_()
            others.mul_(shrink).add_(weights.sum(1))
            if gradient:
                label_rows[here] = rows[own]
                accumulator.mul_(shrink.unsqueeze(1))
                _add_product(accumulator, weights.to(hidden.dtype), rows)
            if smoothing:
                row_sum += rows.sum(0, dtype=wide)
        total = others + (label_logits - highest).exp()
        mean_row = row_sum / matrix.rows
        if gradient:
            share_of_others = others / total - smoothing
            accumulator.div_(total.unsqueeze(1)).addcmul_(label_rows, share_of_others.unsqueeze(1), value=-1)
            if smoothing:
                accumulator.sub_(mean_row, alpha=smoothing)
            label_rows.copy_(accumulator)
        return _Swept(
            label_logits=label_logits,
            log_totals=total.log().add_(highest),
            mean_logits=_product(hidden, mean_row.to(hidden.dtype).unsqueeze(1), wide).squeeze(1),
            predictions=best_rows,
            gradient=label_rows,
        )


def _tiles(matrix: Matrix, hidden: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Cut the rows into tiles whose rows, logits and weights fit the budget, each with the tokens labelled in it."""
    narrow = hidden.element_size()
    row_bytes = matrix.width * narrow + len(labels) * (max(4, narrow) + 2 * narrow)
    budget = TILE_BYTES_CPU if hidden.device.type == "cpu" else TILE_BYTES_GPU
    size = max(1, budget // row_bytes // matrix.step) * matrix.step
    ordered, order = labels.sort()
    starts = torch.arange(0, matrix.rows + size, size, device=labels.device)
    cuts = torch.searchsorted(ordered, starts).tolist()
    for number, start in enumerate(range(0, matrix.rows, size)):
        yield start, min(start + size, matrix.rows), order[cuts[number] : cuts[number + 1]]


def _product(left: torch.Tensor, right: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """The product in `wide` numbers. A GPU gives the sums as it has them; a CPU rounds them to the inputs' type."""
    if left.is_cuda and left.dtype != wide:
        return torch.mm(left, right, out_dtype=wide)
    return torch.mm(left, right).to(wide)


def _add_product(accumulator: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the product to `accumulator`, (tokens, width), some tokens at a time, so that no second one comes to be."""
    at_once = max(1, _PRODUCT_BYTES // (accumulator.element_size() * accumulator.shape[1]))
    for start in range(0, len(accumulator), at_once):
        part = slice(start, start + at_once)
        if left.is_cuda and left.dtype != accumulator.dtype:
            accumulator[part] += torch.mm(left[part], right, out_dtype=accumulator.dtype)
        else:
            accumulator[part] += torch.mm(left[part], right)


def _merge_top(
    best: torch.Tensor, best_rows: torch.Tensor, logits: torch.Tensor, start: int, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest logits so far, (tokens, top), and their rows, with this tile's."""
    found = logits.topk(min(top, logits.shape[1]), dim=1)
    candidates = torch.cat([best, found.values], 1)
    chosen = candidates.topk(min(top, candidates.shape[1]), dim=1)
    return chosen.values, torch.cat([best_rows, found.indices + start], 1).gather(1, chosen.indices)
