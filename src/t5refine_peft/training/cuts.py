"""Cut a batch into micro-batches by a budget of tokens. The batch, and what is learned from it, stay the same."""

from __future__ import annotations

import torch


def cut_batch(inputs: dict[str, torch.Tensor], *, max_tokens: int | None) -> list[dict[str, torch.Tensor]]:
    """Micro-batches of at most `max_tokens` input and label tokens, padding not counted.

    Longest passages first, so that those of about one length share rows. A passage that is longer than the budget is a
    micro-batch of its own.

    Args:
        inputs: `attention_mask` (passages, inputs), `labels` (passages, labels) with -100 on padding, and whatever else
            has the passages as its first dimension.
        max_tokens: the budget; None leaves the batch whole.
    """
    if max_tokens is None:
        return [inputs]
    lengths = passage_tokens(inputs).tolist()
    groups: list[list[int]] = []
    left = 0
    for passage in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not groups or lengths[passage] > left:
            groups.append([])
            left = max_tokens
        groups[-1].append(passage)
        left -= lengths[passage]
    if len(groups) == 1:
        return [inputs]
    return [{name: tensor[group] for name, tensor in inputs.items()} for group in groups]


def passage_tokens(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(passages,) int64: the input and label tokens of each passage of a batch, padding not counted."""
    return inputs["attention_mask"].sum(1) + (inputs["labels"] != -100).sum(1)
