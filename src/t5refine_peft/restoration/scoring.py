"""How probable the model holds an answer, at a temperature."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from t5refine_peft.restoration.encoding import Encoded

LOGITS_BYTES = 256 * 1024**2
"""At most so many bytes of logits at once: a vocabulary of 250k rows makes a megabyte a token."""

Assign = Callable[[torch.Tensor], None]
"""Told, before each forward, which text of the batch each of its rows belongs to: (rows,) int64."""


def answer_log_probabilities(
    model: PreTrainedModel,
    encoded: Encoded,
    texts: Sequence[int],
    sequences: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    temperatures: torch.Tensor,
    assign: Assign,
) -> list[torch.Tensor]:
    """Score the last tokens of sequences, each given the text and all tokens before.

    Args:
        model: base or base with adapter.
        encoded: the batch's texts.
        texts: for each sequence the number of its text.
        sequences: ids that begin with the start token.
        firsts: for each sequence the place of the first token to score.
        temperatures: (texts, temperatures) by which the logits are divided (Guo et al. 2017).
        assign: see `Assign`.

    Returns:
        For each sequence (scored tokens, temperatures) fp32 natural logarithms.
    """
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    vocabulary_rows = model.config.vocab_size
    scored: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    at = 0
    while at < len(order):
        end, tokens = at, 0
        while end < len(order):
            tokens += len(sequences[order[end]]) - firsts[order[end]]
            if end > at and tokens * vocabulary_rows * 4 > LOGITS_BYTES:
                break
            end += 1
        part = order[at:end]
        values = _score(model, encoded, [texts[n] for n in part], [sequences[n] for n in part],
                        [firsts[n] for n in part], temperatures, assign)  # fmt: skip
        for number, value in zip(part, values, strict=True):
            scored[number] = value
        at = end
    return scored


def _score(
    model: PreTrainedModel,
    encoded: Encoded,
    texts: list[int],
    sequences: list[Sequence[int]],
    firsts: list[int],
    temperatures: torch.Tensor,
    assign: Assign,
) -> list[torch.Tensor]:
    device = encoded.mask.device
    width = max(map(len, sequences))
    ids = torch.zeros((len(sequences), width), dtype=torch.int64)
    wanted = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, (sequence, first) in enumerate(zip(sequences, firsts, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        wanted[row, first : len(sequence)] = True
    ids, wanted = ids.to(device), wanted.to(device)
    rows = torch.tensor(texts, device=device)
    part = encoded.of(rows)
    assign(rows)
    places = wanted[:, 1:]
    with _HeadOf(model, places):
        logits = model(
            encoder_outputs=part.output(), attention_mask=part.mask, decoder_input_ids=ids[:, :-1]
        ).logits.float()
    labels = ids[:, 1:][places]
    row_of = rows[:, None].expand_as(places)[places]
    chosen = torch.stack(
        [
            -F.cross_entropy(logits / temperatures[row_of, column, None], labels, reduction="none")
            for column in range(temperatures.shape[1])
        ],
        dim=-1,
    )
    return list(torch.split(chosen.cpu(), places.sum(1).tolist()))


class _HeadOf:
    """Within this context the head gets the wanted places alone, so that no other logits are made.

    It is the model's own forward all the same, with whatever it does to the hidden states before the head.
    """

    def __init__(self, model: PreTrainedModel, places: torch.Tensor) -> None:
        self._head: nn.Module = model.get_output_embeddings()
        self._places = places

    def __enter__(self) -> None:
        self._hook = self._head.register_forward_pre_hook(lambda _, args: (args[0][self._places], *args[1:]))

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()
