"""Which documents are trained on, which choose the checkpoint, which are scored, and which are dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t5refine_peft.corpus.documents import SPLITS
from t5refine_peft.corpus.duplicates import NearDuplicates, first_of_each
from t5refine_peft.corpus.spool import Spool, part_column

DROPPED = -1
_TRAIN, _VALIDATION, _TEST = range(len(SPLITS))


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What becomes of each document.

    Attributes:
        codes: for each part of the spool (documents,) int8: the split's place in `SPLITS`, -1 for dropped.
        duplicates: documents that equal an earlier one.
        near_duplicates: training documents that nearly equal a test document.
    """

    codes: list[np.ndarray]
    duplicates: int
    near_duplicates: int


def assign_splits(
    spool: Spool, *, validation_share: float, test_share: float, seed: int, keep_near_duplicates: bool = False
) -> Assignment:
    """Split by document, and drop duplicates.

    Which split a document falls into depends on its text and the seed alone, so that one more document moves no other,
    and equal documents stay together. Of equal documents the first is kept. Where a training document nearly equals a
    test document, it is the training document that is dropped, so that the test stays the same as a corpus grows.

    Files of pairs that say by their names what they are for (`train.jsonl`, `valid.jsonl`) keep that; without a test
    file, half of the validation pairs become the test.
    """
    parts = spool.parts
    keys = [part_column(part, "key") for part in parts]
    declared = np.concatenate([part_column(part, "declared") for part in parts])
    draws = _draws(np.concatenate(keys), seed)
    codes = np.full(len(draws), _TRAIN, dtype=np.int8)
    codes[draws < test_share + validation_share] = _VALIDATION
    codes[draws < test_share] = _TEST
    _keep_declared(codes, declared, draws)
    first = first_of_each(keys)
    codes[~first] = DROPPED
    split = np.split(codes, np.cumsum([len(part) for part in keys])[:-1])
    index = NearDuplicates(
        np.concatenate([part_column(part, "signature")[own == _TEST] for part, own in zip(parts, split, strict=True)])
    )
    near = 0
    for part, own in zip(parts, split, strict=True) if not keep_near_duplicates else ():
        training = np.flatnonzero(own == _TRAIN)
        alike = training[index.among(part_column(part, "signature")[training])]
        own[alike] = DROPPED
        near += len(alike)
    return Assignment(codes=split, duplicates=int((~first).sum()), near_duplicates=near)


def _keep_declared(codes: np.ndarray, declared: np.ndarray, draws: np.ndarray) -> None:
    """Put the splits that files declare in place, if one of them is held out."""
    has_validation, has_test = ((declared == code).any() for code in (_VALIDATION, _TEST))
    if has_validation or has_test:
        codes[declared >= 0] = declared[declared >= 0]
        if not (has_validation and has_test):
            lone, missing = (_VALIDATION, _TEST) if has_validation else (_TEST, _VALIDATION)
            codes[(declared == lone) & (draws < 0.5)] = missing


def _draws(keys: np.ndarray, seed: int) -> np.ndarray:
    """Even numbers in [0, 1) of keys and seed, by SplitMix64 (Steele, Lea and Flood 2014)."""
    state = keys + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)) / 2.0**53
