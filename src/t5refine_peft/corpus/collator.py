"""Batches of freshly corrupted passages, for any DataLoader or Trainer."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from t5refine_peft.config import CorruptionConfig
from t5refine_peft.corpus.corruption import Example, corrupt
from t5refine_peft.corpus.tokenization import Vocabulary


class CorruptionDataset(Dataset[dict[str, Any]]):
    """A split whose items carry what the collator needs to corrupt them: their number and their epoch.

    The epoch lies in shared memory, so that workers that outlive an epoch see the next one. accelerate calls
    `set_epoch` where a dataset has one.
    """

    def __init__(self, rows: datasets.Dataset, *, fresh: bool) -> None:
        """Wrap a split of `prepare_dataset`; `fresh` masks it anew in each epoch, otherwise always the same way."""
        self._rows = rows.with_format("numpy", columns=["ids", "word_starts"], output_all_columns=True)
        self._fresh = fresh
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Mask as in this epoch from now on, where masks are fresh."""
        self._epoch.fill_(epoch if self._fresh else 0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._rows[index], "index": index, "epoch": int(self._epoch)}


class DataCollatorForTermCorruption:
    """Corrupt passages and pad them to a batch.

    The same seed, epoch and passage number give the same example, whatever the number of workers.

    Returns, for n items:
        input_ids: (n, inputs) int64, padded to a multiple of `pad_to_multiple_of`.
        attention_mask: (n, inputs) int64.
        labels: (n, labels) int64, contiguous, -100 on padding.
        term_mask: (n, labels) bool, the label tokens that belong to a term.
    """

    def __init__(
        self, vocabulary: Vocabulary, config: CorruptionConfig, *, seed: int = 0, pad_to_multiple_of: int = 8
    ) -> None:
        self.vocabulary = vocabulary
        self.config = config
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of

    def example(self, item: dict[str, Any]) -> Example:
        """The corrupted passage of one item of a `CorruptionDataset`."""
        return corrupt(
            np.asarray(item["ids"], dtype=np.int32),
            word_starts=np.asarray(item["word_starts"], dtype=bool),
            term_spans=[tuple(span) for span in item["term_spans"]],
            vocabulary=self.vocabulary,
            config=self.config,
            rng=np.random.default_rng([self.seed, item["epoch"], item["index"]]),
        )

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Corrupt and pad the items of a `CorruptionDataset`."""
        return self.pad([self.example(item) for item in items])

    def pad(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Pad examples to one batch."""
        pad_id = self.vocabulary.pad_id
        inputs = self._stack([example.input_ids for example in examples], pad_id, np.int64)
        return {
            "input_ids": inputs,
            "attention_mask": self._stack([np.ones_like(e.input_ids) for e in examples], 0, np.int64),
            "labels": self._stack([example.labels for example in examples], -100, np.int64),
            "term_mask": self._stack([example.term_mask for example in examples], False, bool),
        }

    def _stack(self, arrays: list[np.ndarray], padding: int | bool, dtype: type) -> torch.Tensor:
        multiple = self.pad_to_multiple_of
        width = -(-max(len(array) for array in arrays) // multiple) * multiple
        stacked: np.ndarray = np.full((len(arrays), width), padding, dtype=dtype)
        for row, array in zip(stacked, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(stacked)
