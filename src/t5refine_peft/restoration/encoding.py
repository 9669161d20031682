"""What the encoder makes of a batch of texts, kept for when a text is decoded once more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True)
class Encoded:
    """A batch of texts as the encoder left them.

    Attributes:
        states: (texts, tokens, width).
        mask: (texts, tokens) int64, 0 on padding.
    """

    states: torch.Tensor
    mask: torch.Tensor

    def of(self, texts: torch.Tensor) -> Encoded:
        """A row for each of `texts`, (rows,) int64 numbers of texts of the batch."""
        return Encoded(self.states[texts], self.mask[texts])

    def output(self) -> BaseModelOutput:
        """As `generate` and `forward` take it."""
        return BaseModelOutput(last_hidden_state=self.states)


class EncoderCache:
    """The encoder's states of texts that were read before, the least recently used dropped first."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._states: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: Hashable) -> torch.Tensor | None:
        """The states of a text, (tokens, width), if they are kept."""
        states = self._states.get(key)
        if states is not None:
            self._states.move_to_end(key)
        return states

    def put(self, key: Hashable, states: torch.Tensor) -> None:
        """Keep the states of a text, (tokens, width)."""
        self.drop(key)
        self._states[key] = states
        self._size_bytes += states.nbytes
        while self._size_bytes > self._limit_bytes:
            self.drop(next(iter(self._states)))

    def drop(self, key: Hashable) -> None:
        """Forget a text."""
        states = self._states.pop(key, None)
        self._size_bytes -= 0 if states is None else states.nbytes

    def drop_adapter(self, adapter: str) -> None:
        """Forget all that was read with an adapter; keys are pairs of adapter and text."""
        for key in [key for key in self._states if isinstance(key, tuple) and key[0] == adapter]:
            self.drop(key)


def encode_batch(
    model: PreTrainedModel,
    inputs: Sequence[np.ndarray],
    *,
    pad_id: int,
    cache: EncoderCache | None = None,
    adapters: Sequence[str | None] | None = None,
) -> Encoded:
    """Run the encoder over a batch, unless all of its texts are in the cache.

    Args:
        model: base or base with adapter.
        inputs: for each text its (tokens,) ids.
        pad_id: the padding's id.
        cache: states of texts that were read before; None keeps none.
        adapters: for each text the adapter that reads it, by which the cache tells texts apart.
    """
    width = max(map(len, inputs))
    mask = torch.zeros((len(inputs), width), dtype=torch.int64)
    for row, ids in zip(mask, inputs, strict=True):
        row[: len(ids)] = 1
    mask = mask.to(model.device)
    keys = [
        (adapter, np.asarray(ids, dtype=np.int64).tobytes())
        for adapter, ids in zip(adapters or [None] * len(inputs), inputs, strict=True)
    ]
    kept = [cache.get(key) for key in keys] if cache is not None else []
    found = [states for states in kept if states is not None]
    if cache is not None and len(found) == len(inputs):
        states = found[0].new_zeros((len(inputs), width, found[0].shape[-1]))
        for row, known in zip(states, found, strict=True):
            row[: len(known)] = known
        return Encoded(states, mask)
    input_ids = torch.full(mask.shape, pad_id, dtype=torch.int64)
    for row, ids in zip(input_ids, inputs, strict=True):
        row[: len(ids)] = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    states = model.get_encoder()(input_ids=input_ids.to(model.device), attention_mask=mask).last_hidden_state
    if cache is not None:
        for key, row, ids in zip(keys, states, inputs, strict=True):
            cache.put(key, row[: len(ids)].clone())
    return Encoded(states, mask)
