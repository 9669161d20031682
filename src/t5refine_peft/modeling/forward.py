"""The training forward: what T5, mT5 and umT5 of `transformers` compute, on flat tokens and packed rows.

The model's own modules hold the weights, PEFT's hold the adapter; only the order of the work is ours. Linear layers,
norms and feed-forward see the tokens of all passages as one list without padding; attention sees them in packed rows.
No position bias is kept for cross-attention, no cache is made, and blocks are recomputed where memory demands it.

`transformers` has three copies of T5 without a common type, hence `Any` for its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.activations import NewGELUActivation

from t5refine_peft.modeling.adapted import adapted_linears, dropped, frozen_norm
from t5refine_peft.modeling.attention import additive_mask, attend, mask_dtype
from t5refine_peft.modeling.packing import HeadMoves, Rows, pack, visible


class LabelStates(NamedTuple):
    """What the head turns into logits."""

    hidden: torch.Tensor
    """(label tokens, width): the decoder's states, scaled as the head of a tied T5 wants them."""
    labels: torch.Tensor
    """(label tokens,) int64: -100 where a label in the midst of a passage is ignored."""


@contextmanager
def packed_forward(core: Any, *, checkpointed_blocks: int = 0) -> Iterator[None]:
    """Within this context `core(input_ids, attention_mask, labels)` gives `LabelStates`.

    It takes the place of the model's own forward, so that whatever is wrapped around the model (PEFT, data parallelism)
    works as ever.

    Args:
        core: a T5, mT5 or umT5 with a head, with or without a LoRA adapter in it.
        checkpointed_blocks: so many blocks, the encoder's first, keep nothing but their input and are computed again
            for the gradient.
    """

    def forward(
        input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **_others: Any
    ) -> LabelStates:
        return label_states(core, input_ids, attention_mask, labels, checkpointed_blocks=checkpointed_blocks)

    core.forward = forward
    try:
        yield
    finally:
        del core.forward


def label_states(
    core: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    *,
    checkpointed_blocks: int = 0,
) -> LabelStates:
    """Run encoder and decoder on a batch padded on the right.

    Args:
        core: see `packed_forward`.
        input_ids: (passages, inputs) int64.
        attention_mask: (passages, inputs) int64, 1 on tokens and 0 on padding.
        labels: (passages, labels) int64, -100 on padding.
        checkpointed_blocks: see `packed_forward`.
    """
    lengths = attention_mask.sum(1).tolist(), _asked(labels).tolist()  # all that the host waits for
    return flat_label_states(
        core,
        _without_padding(input_ids, lengths[0]),
        _without_padding(core._shift_right(labels), lengths[1]),
        _without_padding(labels, lengths[1]),
        *pack(*lengths),
        checkpointed_blocks=checkpointed_blocks,
    )


def flat_label_states(
    core: Any,
    input_ids: torch.Tensor,
    decoder_ids: torch.Tensor,
    labels: torch.Tensor,
    inputs: Rows,
    outputs: Rows,
    *,
    checkpointed_blocks: int = 0,
) -> LabelStates:
    """Run encoder and decoder on tokens that are flat already, the passages one after the other.

    Args:
        core: see `packed_forward`.
        input_ids: (input tokens,) int64.
        decoder_ids: (label tokens,) int64, the labels shifted to the right within each passage.
        labels: (label tokens,) int64.
        inputs: where the input tokens stand in rows; see `pack`.
        outputs: the same of the label tokens.
        checkpointed_blocks: see `packed_forward`.
    """
    inputs, outputs = inputs.to(input_ids.device), outputs.to(input_ids.device)
    encoded = _run(core.encoder, input_ids, _Sight.of(core.encoder, inputs), None, None, checkpointed_blocks)
    decoded = _run(
        core.decoder,
        decoder_ids,
        _Sight.of(core.decoder, outputs),
        encoded,
        _Sight.across(core.decoder, outputs, inputs),
        checkpointed_blocks - len(core.encoder.block),
    )
    return LabelStates(decoded * _head_scale(core), labels)


def _asked(labels: torch.Tensor) -> torch.Tensor:
    """(passages,) int64: how many places of each passage reach to its last label that counts; one at least."""
    return ((labels != -100) * torch.arange(1, labels.shape[1] + 1, device=labels.device)).amax(1).clamp_min(1)


def _without_padding(padded: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """(passages, width) to (tokens,): the first `lengths` of each passage, one passage after the other."""
    width = padded.shape[1]
    kept = np.concatenate([np.arange(length) + row * width for row, length in enumerate(lengths)])
    return padded.flatten().index_select(0, torch.from_numpy(kept).to(padded.device, non_blocking=True))


def _head_scale(core: Any) -> float:
    """T5 scales the states of a tied head; `transformers` reads that from another flag in each of its copies."""
    config = core.config
    scaled = config.scale_decoder_outputs if config.model_type == "t5" else config.tie_word_embeddings
    return config.d_model**-0.5 if scaled and config.model_type != "mt5" else 1.0


@dataclass(frozen=True)
class _Sight:
    """Who sees whom in one kind of attention."""

    queries: HeadMoves
    keys: HeadMoves
    visible: torch.Tensor | None

    @classmethod
    def of(cls, stack: Any, rows: Rows) -> _Sight:
        """Self-attention of encoder or decoder."""
        moves = HeadMoves(rows, stack.config.num_heads)
        return cls(moves, moves, visible(rows, rows, causal=stack.config.is_decoder))

    @classmethod
    def across(cls, stack: Any, outputs: Rows, inputs: Rows) -> _Sight:
        """Cross-attention from the labels to the inputs."""
        heads = stack.config.num_heads
        return cls(HeadMoves(outputs, heads), HeadMoves(inputs, heads), visible(outputs, inputs, causal=False))

    def mask(self, like: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        return additive_mask(self.visible, bias, heads=self.queries.heads, dtype=mask_dtype(like))


def _run(
    stack: Any,
    ids: torch.Tensor,
    sight: _Sight,
    encoded: torch.Tensor | None,
    across: _Sight | None,
    checkpointed_blocks: int,
) -> torch.Tensor:
    """Encoder or decoder on flat tokens; (tokens, width)."""
    rate = stack.config.dropout_rate if stack.training else 0.0
    hidden = _dropout(stack.embed_tokens(ids), rate)
    mask: torch.Tensor | None = None
    across_mask = None if across is None else across.mask(hidden, None)
    for number, block in enumerate(stack.block):
        own = block.layer[0].SelfAttention
        if own.has_relative_attention_bias:  # the first block's serves all; umT5 has one in each
            width = sight.queries.rows.width
            mask = sight.mask(hidden, own.compute_bias(width, width, device=hidden.device))

        def compute(hidden: torch.Tensor, block: Any = block, mask: torch.Tensor | None = mask) -> torch.Tensor:
            hidden = _self_attention(hidden, block.layer[0], sight, mask, rate)
            if encoded is not None and across is not None:
                hidden = _cross_attention(hidden, block.layer[1], encoded, across, across_mask, rate)
            return _feed_forward(hidden, block.layer[-1], rate)

        if number < checkpointed_blocks and torch.is_grad_enabled():
            hidden = checkpoint(compute, hidden, use_reentrant=False)
        else:
            hidden = compute(hidden)
    return _dropout(frozen_norm(hidden, stack.final_layer_norm), rate)


def _self_attention(
    hidden: torch.Tensor, layer: Any, sight: _Sight, mask: torch.Tensor | None, rate: float
) -> torch.Tensor:
    attention = layer.SelfAttention
    query, key, value = adapted_linears(frozen_norm(hidden, layer.layer_norm), attention.q, attention.k, attention.v)
    return hidden + _dropout(_attend(query, key, value, sight, mask, attention.o, rate), rate)


def _cross_attention(
    hidden: torch.Tensor,
    layer: Any,
    encoded: torch.Tensor,
    sight: _Sight,
    mask: torch.Tensor | None,
    rate: float,
) -> torch.Tensor:
    attention = layer.EncDecAttention
    (query,) = adapted_linears(frozen_norm(hidden, layer.layer_norm), attention.q)
    key, value = adapted_linears(encoded, attention.k, attention.v)
    return hidden + _dropout(_attend(query, key, value, sight, mask, attention.o, rate), rate)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sight: _Sight,
    mask: torch.Tensor | None,
    out: Any,
    rate: float,
) -> torch.Tensor:
    mixed = attend(
        sight.queries.into_rows(query), sight.keys.into_rows(key), sight.keys.into_rows(value), mask, dropout=rate
    )
    return adapted_linears(sight.queries.out_of_rows(mixed), out)[0]


def _feed_forward(hidden: torch.Tensor, layer: Any, rate: float) -> torch.Tensor:
    inner = layer.DenseReluDense
    act: Callable[[torch.Tensor], torch.Tensor] = inner.act
    normed = frozen_norm(hidden, layer.layer_norm)
    if isinstance(act, NewGELUActivation):  # the same function in one pass instead of eight

        def act(values: torch.Tensor) -> torch.Tensor:
            return F.gelu(values, approximate="tanh")

    if hasattr(inner, "wi_0"):
        gate, linear = adapted_linears(normed, inner.wi_0, inner.wi_1)
        activated = act(gate) * linear
    else:
        activated = act(adapted_linears(normed, inner.wi)[0])
    return hidden + _dropout(adapted_linears(_dropout(activated, rate), inner.wo)[0], rate)


def _dropout(values: torch.Tensor, rate: float) -> torch.Tensor:
    return dropped(values, rate) if rate else values
