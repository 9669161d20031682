"""Batches of freshly corrupted passages, for any DataLoader or Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from t5refine_peft.config import CorruptionConfig
from t5refine_peft.corpus.corruption import Example, TermSpan, build_example, corrupt
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError


@dataclass(frozen=True)
class CorruptionItem:
    """A passage and what decides its masks. Not a dict, so that no Trainer strips it of what a model does not take.

    Attributes:
        ids: (tokens,) int32.
        word_starts: (tokens,) bool.
        term_spans: first token, token behind the last and number of each term.
        context_tokens: so many tokens at the front are context.
        index: the passage's number in its split.
        epoch: the epoch that it is masked for; 0 for ever where masks are fixed.
        masked: the token ranges that a written pair masks; None where masks are drawn.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    term_spans: Sequence[TermSpan]
    context_tokens: int
    index: int
    epoch: int
    masked: Sequence[tuple[int, int]] | None = None


class CorruptionDataset(Dataset[CorruptionItem]):
    """A split whose items carry what the collator needs to corrupt them: their number and their epoch.

    The epoch lies in shared memory, so that workers that outlive an epoch see the next one. accelerate calls
    `set_epoch` where a dataset has one.
    """

    def __init__(self, rows: datasets.Dataset, *, fresh: bool) -> None:
        """Wrap a split of `prepare_dataset`; `fresh` masks it anew in each epoch, otherwise always the same way."""
        self._rows = rows.with_format("arrow")
        self._fresh = fresh
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Mask as in this epoch from now on, where masks are fresh."""
        self._epoch.fill_(epoch if self._fresh else 0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> CorruptionItem:
        return self.__getitems__([range(len(self))[index]])[0]  # -1 is the last passage, and has its masks

    def __getitems__(self, indices: Sequence[int]) -> list[CorruptionItem]:
        """The items of a batch, read at once; a DataLoader calls this where a dataset has it."""
        table = self._rows[list(indices)]
        epoch = int(self._epoch)
        columns = zip(
            _arrays(table["ids"], np.int32),
            _arrays(table["word_starts"], np.bool_),
            table["term_spans"].to_pylist(),
            table["context_tokens"].to_pylist(),
            indices,
            table["masked"].to_pylist(),
            strict=True,
        )
        return [
            CorruptionItem(ids, words, spans, context, index, epoch, masked)
            for ids, words, spans, context, index, masked in columns
        ]


class DataCollatorForTermCorruption:
    """Corrupt passages and pad them to a batch.

    The same seed, epoch and passage number give the same example, whatever the number of workers. It works in any
    DataLoader, and in a plain Trainer as it is, since what it gives a model is what T5's forward takes.

    Returns, for n items:
        input_ids: (n, inputs) int64, padded to a multiple of `pad_to_multiple_of`.
        attention_mask: (n, inputs) int64.
        labels: (n, labels) int64, contiguous, -100 on padding.
        term_mask: (n, labels) bool, the label tokens that belong to a term.

    A passage of twenty tokens with a term of two, which is all that a budget of a tenth allows:

    >>> from pathlib import Path
    >>> import t5refine_peft
    >>> vocabulary = Vocabulary.load(Path(t5refine_peft.__file__).parent / "assets" / "mt5-mini")
    >>> recipe = CorruptionConfig(mask_share=0.1, term_probability=1.0, random_only=0.0)
    >>> collator = DataCollatorForTermCorruption(vocabulary, recipe)
    >>> words = np.ones(20, dtype=bool)
    >>> item = CorruptionItem(np.arange(10, 30), words, [(4, 6, 0)], context_tokens=0, index=0, epoch=0)
    >>> batch = collator([item])
    >>> batch["input_ids"]
    tensor([[   10,    11,    12,    13, 10099,    16,    17,    18,    19,    20,
                21,    22,    23,    24,    25,    26,    27,    28,    29,     1,
                 0,     0,     0,     0]])
    >>> batch["labels"]
    tensor([[10099,    14,    15,     1,  -100,  -100,  -100,  -100]])
    >>> batch["term_mask"]
    tensor([[False,  True,  True, False, False, False, False, False]])
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        config: CorruptionConfig,
        *,
        seed: int = 0,
        pad_to_multiple_of: int = 8,
        term_weights: Sequence[float] | None = None,
    ) -> None:
        """Take the recipe; `term_weights` are a glossary's `weights`, None takes 1 for every term."""
        self.vocabulary = vocabulary
        self.config = config
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        self.term_weights = term_weights

    def example(self, item: CorruptionItem) -> Example:
        """The corrupted passage of one item of a `CorruptionDataset`; a written pair is masked as it was written.

        Raises:
            RefineError: a row of a dataset, which has no epoch.
        """
        if not isinstance(item, CorruptionItem):
            raise RefineError(
                f"the collator expects items of a CorruptionDataset, which know their epoch, found "
                f"{type(item).__name__}; wrap the split: CorruptionDataset(rows, fresh=True)"
            )
        if item.masked is not None:
            return build_example(
                item.ids,
                [(start, end, False) for start, end in item.masked],
                term_spans=item.term_spans,
                vocabulary=self.vocabulary,
            )
        return corrupt(
            item.ids,
            word_starts=item.word_starts,
            term_spans=item.term_spans,
            vocabulary=self.vocabulary,
            config=self.config,
            rng=np.random.default_rng([self.seed, item.epoch, item.index]),
            context_tokens=item.context_tokens,
            term_weights=self.term_weights,
        )

    def __call__(self, items: Sequence[CorruptionItem]) -> dict[str, torch.Tensor]:
        """Corrupt and pad the items of a `CorruptionDataset`."""
        return self.pad([self.example(item) for item in items])

    def pad(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Pad examples to one batch."""
        inputs = self._stack([example.input_ids for example in examples], self.vocabulary.pad_id, np.int64)
        lengths = torch.tensor([len(example.input_ids) for example in examples])
        return {
            "input_ids": inputs,
            "attention_mask": (torch.arange(inputs.shape[1]) < lengths[:, None]).long(),
            "labels": self._stack([example.labels for example in examples], -100, np.int64),
            "term_mask": self._stack([example.term_mask for example in examples], False, bool),
        }

    def _stack(self, arrays: Sequence[np.ndarray], padding: int | bool, dtype: type) -> torch.Tensor:
        multiple = self.pad_to_multiple_of
        width = -(-max(len(array) for array in arrays) // multiple) * multiple
        stacked: np.ndarray = np.full((len(arrays), width), padding, dtype=dtype)
        for row, array in zip(stacked, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(stacked)


def _arrays(column: Any, dtype: type) -> list[np.ndarray]:
    """The rows of an Arrow column of lists, each an array of `dtype`."""
    column = column.combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    ends = np.cumsum(column.value_lengths().to_numpy())
    return np.split(values, ends[:-1])
