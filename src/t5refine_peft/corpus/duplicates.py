"""Duplicates: equal documents by a hash, near ones by MinHash (Broder 1997; Lee et al. 2022, arXiv 2107.06499)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import rensa

PERMUTATIONS = 128
"""Values in a signature: the estimate of a similarity of 0.8 is off by 0.035 (one standard deviation)."""
NEAR_DUPLICATE = 0.8
"""From this Jaccard similarity of character shingles on, two documents are near duplicates (Lee et al. 2022)."""

_SHINGLE = 5
_BANDS = 16
"""Of 8 values each: a pair of similarity 0.85 shares one with a chance of 0.994, of 0.8 with 0.95, and one of 0.2, as
any two texts of a domain may have, with 0.00004: so that few pairs are compared however large a corpus is."""
_SEED = 0


def text_key(text: str) -> int:
    """64 bits of a hash of `text` without the blanks around it: equal documents have equal keys.

    Among 100 million documents two different ones share a key with a chance of 0.0003.
    """
    digest = hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures of the texts' shingles of five characters, case-folded, blanks as one.

    Returns:
        (texts, 128) uint32. The share of equal values of two rows estimates the Jaccard similarity of their shingles.
    """
    if not texts:
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    folded = [" ".join(text.casefold().split()) for text in texts]
    counts = np.array([len(text) for text in folded], dtype=np.int64)
    padding = "\0" * (_SHINGLE - 1)  # so that a text of n characters has n shingles, short ones too
    joined = padding.join(folded) + padding
    hashes = _shingle_hashes(np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4"))
    starts = np.cumsum(counts + len(padding)) - counts - len(padding)
    own = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes[own], offsets, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), PERMUTATIONS)


class NearDuplicates:
    """Tells which documents are near duplicates of documents that were set apart."""

    def __init__(self, held_out: np.ndarray, *, similarity: float = NEAR_DUPLICATE) -> None:
        """Index the signatures of the documents set apart, (documents, 128) uint32."""
        self._signatures = held_out
        self._similarity = similarity
        keys = _band_keys(held_out)  # 640 bytes a document in all
        self._order = np.argsort(keys, axis=0, kind="stable").astype(np.int32)
        self._keys = np.take_along_axis(keys, self._order.astype(np.int64), axis=0)

    def among(self, others: np.ndarray) -> np.ndarray:
        """Mark the near duplicates among `others`, (documents, 128) uint32.

        Returns:
            (documents,) bool.
        """
        found = np.zeros(len(others), dtype=bool)
        if not len(self._signatures):
            return found
        keys = _band_keys(others)
        for band in range(_BANDS):
            lows = np.searchsorted(self._keys[:, band], keys[:, band], side="left")
            highs = np.searchsorted(self._keys[:, band], keys[:, band], side="right")
            for row in np.flatnonzero((highs > lows) & ~found).tolist():
                candidates = self._order[lows[row] : highs[row], band]
                alike = (self._signatures[candidates] == others[row]).mean(axis=1)
                found[row] = bool((alike >= self._similarity).any())
        return found


def first_of_each(keys: Iterable[np.ndarray]) -> np.ndarray:
    """Mark the first document of each key.

    Args:
        keys: (documents,) uint64 arrays, in the documents' order.

    Returns:
        (all documents,) bool.
    """
    joined = np.concatenate([*keys, np.empty(0, dtype=np.uint64)])
    first = np.zeros(len(joined), dtype=bool)
    first[np.unique(joined, return_index=True)[1]] = True
    return first


def _shingle_hashes(characters: np.ndarray) -> np.ndarray:
    """(characters - 4,) uint64 hashes of all runs of five characters, each step mixed as in MurmurHash3's finaliser."""
    count = len(characters) - _SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(_SHINGLE):
        hashes ^= characters[place : place + count]
        hashes *= np.uint64(0xFF51AFD7ED558CCD)
        hashes ^= hashes >> np.uint64(33)
    return hashes


def _band_keys(rows: np.ndarray) -> np.ndarray:
    """(documents, bands) uint32: a hash of each band's values."""
    values = np.ascontiguousarray(rows).view(np.uint64).reshape(len(rows), _BANDS, PERMUTATIONS // _BANDS // 2)
    keys = np.zeros((len(rows), _BANDS), dtype=np.uint64)
    for place in range(values.shape[2]):
        keys ^= values[:, :, place]
        keys *= np.uint64(0xFF51AFD7ED558CCD)
        keys ^= keys >> np.uint64(33)
    return (keys >> np.uint64(32)).astype(np.uint32)
