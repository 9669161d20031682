"""The predecessors' corruption and loss, as their scripts have it, on the passages and terms that ours gets.

They mask every listed keyword, then random spans of one to three tokens until a fifth of the passage is masked, never
over punctuation; spans that touch, or have one token between them, become one. Masks are drawn once. Everything is
padded to one width, and the padding of the labels is counted in the loss. What is better here than there, to their
advantage: terms are found longest first and as whole words, no character is lost, and fp32 stands for their fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from t5refine_peft.corpus.collator import CorruptionItem, DataCollatorForTermCorruption
from t5refine_peft.corpus.corruption import Example, build_example
from t5refine_peft.corpus.tokenization import Vocabulary

MASK_SHARE = 0.2
LABEL_SHARE = 0.5
"""They pad to 512 tokens in and 256 out; here the same ratio of the longest passage."""


def corrupt(ids: np.ndarray, term_spans: list[Any], vocabulary: Vocabulary, rng: np.random.Generator) -> Example:
    """Mask all terms of a passage, and random spans up to a fifth of it."""
    masked = np.zeros(len(ids), dtype=bool)
    is_term = np.zeros(len(ids), dtype=bool)
    for start, end, _ in term_spans:
        masked[start:end] = is_term[start:end] = True
    spoken = _spoken(vocabulary)[ids]
    for start in rng.permutation(len(ids)).tolist():
        if masked.mean() >= MASK_SHARE:
            break
        end = start + int(rng.integers(1, 4))
        if spoken[start:end].all() and not masked[start:end].any():
            masked[start:end] = True
    inner = np.flatnonzero(~masked[1:-1] & masked[:-2] & masked[2:]) + 1
    masked[inner] = True  # a single token between two gaps is swallowed
    if masked.all() or not masked.any():
        masked[:] = False
        masked[int(rng.integers(len(ids)))] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(np.int8), [0]])))
    spans = [(int(s), int(e), bool(is_term[s:e].all())) for s, e in edges.reshape(-1, 2)]
    return build_example(
        ids,
        spans[: len(vocabulary.sentinel_ids)],
        term_spans=[tuple(span) for span in term_spans],
        vocabulary=vocabulary,
    )


class PredecessorCollator:
    """Batches as the predecessors' tokenised files give them: masks drawn once, cut and padded to one width."""

    def __init__(self, collator: DataCollatorForTermCorruption, *, tokens: int) -> None:
        self._collator = collator
        self._inputs, self._labels = tokens, round(LABEL_SHARE * tokens)

    def example(self, item: CorruptionItem) -> Example:
        rng = np.random.default_rng([self._collator.seed, item.index])
        ids = np.asarray(item.ids, dtype=np.int32)
        return corrupt(ids, item.term_spans, self._collator.vocabulary, rng)

    def __call__(self, items: Sequence[CorruptionItem]) -> dict[str, torch.Tensor]:
        batch = self._collator.pad([self.example(item) for item in items])
        pad_id = self._collator.vocabulary.pad_id
        paddings = {"input_ids": pad_id, "attention_mask": 0, "labels": -100, "term_mask": False}
        widths = {"labels": self._labels, "term_mask": self._labels}
        return {
            name: _to_width(tensor, widths.get(name, self._inputs), paddings[name]) for name, tensor in batch.items()
        }


@cache
def _spoken(vocabulary: Vocabulary) -> np.ndarray:
    """(pieces,) bool: those with a letter or digit in them, which is all but punctuation and spaces."""
    return np.array([any(map(str.isalnum, vocabulary.decode([token]))) for token in range(len(vocabulary))])


def count_padding(batch: dict[str, torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """The batch with its labels' padding as labels to be learnt, as theirs is."""
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == -100, pad_id)}


def _to_width(tensor: torch.Tensor, width: int, padding: int | bool) -> torch.Tensor:
    cut = tensor[:, :width]
    return F.pad(cut, (0, width - cut.shape[1]), value=padding).contiguous()
