"""Bytes that the training forward keeps for its gradient, block by block, by arithmetic.

Follows `forward`, `adapted` and `attention` operation by operation; `benchmarks/bench_memory.py` and the tests hold it
against what a memory tracker sees there.
"""

from __future__ import annotations

from dataclasses import dataclass

from t5refine_peft.config import AdapterConfig
from t5refine_peft.modeling.shapes import Shape


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch whose passages fill their rows."""

    passages: int
    input_tokens: int
    """Of each passage."""
    label_tokens: int
    """Of each passage."""


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """What one block takes."""

    input: int
    """Its input, all that a checkpointed block keeps."""
    kept: int
    """All that its gradient needs, the input included."""
    peak: int
    """The most that it takes while its gradient is computed, what is kept included; without dequantised weights."""


@dataclass(frozen=True)
class Activations:
    """The memory of activations of one micro-batch."""

    shape: Shape
    adapter: AdapterConfig
    batch: Batch
    number_bytes: int
    """Of a number that is computed with: 2 in bf16, 4 in fp32."""
    on_gpu: bool
    """GPU attention keeps a sum a query, the CPU's keeps the probabilities."""

    @property
    def inputs(self) -> int:
        """Input tokens of the micro-batch."""
        return self.batch.passages * self.batch.input_tokens

    @property
    def labels(self) -> int:
        """Label tokens of the micro-batch."""
        return self.batch.passages * self.batch.label_tokens

    @property
    def shared_bytes(self) -> int:
        """Masks with their biases, the encoder's result and its gradient, both stacks' ends."""
        heads, passages = self.shape.heads, self.batch.passages
        inputs, labels = self.batch.input_tokens, self.batch.label_tokens
        mask_number = self.number_bytes if self.on_gpu else 4
        # Where rows are full, the encoder's mask is the bias alone; the planner does not count on it.
        masks = passages * mask_number * (heads * inputs**2 + heads * labels**2 + labels * inputs)
        states = self.shape.width * self.number_bytes
        return masks + 3 * self.inputs * states + 3 * self.labels * states

    def block(self, *, decoder: bool) -> BlockBytes:
        """An encoder's or a decoder's block."""
        own = self.labels if decoder else self.inputs
        length = self.batch.label_tokens if decoder else self.batch.input_tokens
        attention, feed_forward = self._self_attention(own, length), self._feed_forward(own)
        if decoder:
            attention += self._cross_attention()
        return BlockBytes(
            input=own * self.shape.width * self.number_bytes,
            kept=attention + feed_forward,
            # The feed-forward's part is gone when attention's turn comes.
            peak=attention
            + max(feed_forward + self._feed_forward_transient(own), self._attention_transient(own, length)),
        )

    def _adapted(self, tokens: int, width: int, layers: int) -> int:
        """An adapted layer's input, its product with the adapters, and with dropout the dropped input and its mask."""
        kept = tokens * (width + layers * self.adapter.rank) * self.number_bytes
        return kept + (self._dropped(tokens * width) if self.adapter.dropout else 0)

    def _dropped(self, numbers: int) -> int:
        """What dropout gives, and its mask, a byte a number."""
        return numbers * (self.number_bytes + 1)

    def _dropout_mask(self, numbers: int) -> int:
        return numbers if self.shape.dropout else 0

    def _self_attention(self, tokens: int, length: int) -> int:
        normed = tokens * self.shape.width * self.number_bytes + self._adapted(tokens, self.shape.width, 3)
        return normed + self._attended(tokens, tokens, length)

    def _cross_attention(self) -> int:
        query = self.labels * self.shape.width * self.number_bytes + self._adapted(self.labels, self.shape.width, 1)
        key_value = self._adapted(self.inputs, self.shape.width, 2) - self.inputs * self.shape.width * self.number_bytes
        return query + key_value + self._attended(self.labels, self.inputs, self.batch.input_tokens)

    def _attended(self, queries: int, keys: int, length: int) -> int:
        """Queries, keys and values in rows, what attention keeps, and its way out."""
        width = self.shape.attention_width
        rows = (queries + 2 * keys) * width * self.number_bytes
        scores = queries * length * self.shape.heads
        if self.on_gpu:
            probabilities = queries * (width * self.number_bytes + self.shape.heads * 4)
        else:
            probabilities = scores * self.number_bytes * (2 if self.shape.dropout else 1)
        return rows + probabilities + self._adapted(queries, width, 1) + self._dropout_mask(queries * self.shape.width)

    def _feed_forward(self, tokens: int) -> int:
        normed = tokens * self.shape.width * self.number_bytes
        normed += self._adapted(tokens, self.shape.width, 2 if self.shape.gated else 1)
        inner = tokens * self.shape.inner
        # The gate and what its activation gives, the linear part; ungated, the activation's input.
        between = inner * self.number_bytes * (3 if self.shape.gated else 1) + self._dropout_mask(inner)
        out = self._adapted(tokens, self.shape.inner, 1) + self._dropout_mask(tokens * self.shape.width)
        return normed + between + out

    def _feed_forward_transient(self, tokens: int) -> int:
        # The gradients of residual and of the norm's result, and those of the inner states: what came from above, and
        # what goes to the gate, to its activation and to the linear part.
        return tokens * self.number_bytes * (3 * self.shape.width + (3 if self.shape.gated else 2) * self.shape.inner)

    def _attention_transient(self, tokens: int, length: int) -> int:
        states = tokens * self.number_bytes * (3 * self.shape.width + 6 * self.shape.attention_width)
        if self.on_gpu:
            return states
        # The CPU's attention holds gradients of its probabilities; in its forward, scores and mask in fp32.
        return states + tokens * length * self.shape.heads * max(2 * self.number_bytes, 8)
