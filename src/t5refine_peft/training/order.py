"""In which order passages are trained on: passages of about one length together, and the same order when resumed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from t5refine_peft.corpus.collator import CorruptionDataset


class LengthGroupedSampler(Sampler[int]):
    """A fresh order each epoch in which passages of about one length stand together, so that little is padding.

    The order depends on seed and epoch alone: a resumed run sees the one that it would have seen. The last batch of an
    epoch is filled up with passages from its beginning, so that every step, on any number of processes, holds as many.
    """

    def __init__(self, lengths: list[int], *, batch: int, seed: int, dataset: CorruptionDataset | None = None) -> None:
        """Order passages of these `lengths` (tokens) for steps of `batch`; `dataset` is told each epoch as well."""
        self._lengths = np.asarray(lengths)
        self._batch = batch
        self._seed = seed
        self._dataset = dataset
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """accelerate calls this at the beginning of each epoch.

        It tells the dataset too, except where a resumed run skips batches: so the sampler does.
        """
        self._epoch = epoch
        if self._dataset is not None:
            self._dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch) * self._batch

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self._epoch))

    def of_step(self, step: int) -> list[int]:
        """The passages in the batch of a step, counted from 1 over all epochs."""
        epoch, at = divmod(step - 1, len(self) // self._batch)
        return self.order(epoch)[at * self._batch : (at + 1) * self._batch]

    def order(self, epoch: int) -> list[int]:
        """The passages of an epoch, batch after batch."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._lengths))
        pool = 50 * self._batch  # sorted within pools, so that the order stays random at large
        batches: list[np.ndarray] = []
        for at in range(0, len(order), pool):
            part = order[at : at + pool]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch] for i in range(0, len(part), self._batch)]
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        shuffled.sort(key=lambda batch: len(batch) < self._batch)  # a short batch goes last
        filled: list[int] = np.resize(np.concatenate(shuffled), len(self)).tolist()
        return filled
