"""Documents cut into passages of a token budget, at sentences where possible. Nothing is lost."""

from __future__ import annotations

import re

import numpy as np

from t5refine_peft.corpus.tokenization import Encoding

_SENTENCE_END = re.compile(r"[。！？；…]+[”’」』）]*|[.!?;]+[\"')\]]*(?=\s)|\n+")


def split_passages(text: str, encoding: Encoding, word_starts: np.ndarray, *, max_tokens: int) -> list[slice]:
    """Cut a document into token slices of at most `max_tokens`, which follow on each other and cover it.

    A slice ends with the last sentence that fits; where none does, at a word; where no word begins, anywhere.

    Args:
        text: the document.
        encoding: its pieces.
        word_starts: (tokens,) bool, the pieces that begin a word.
        max_tokens: the budget of a passage.
    """
    count = len(encoding.ids)
    if count <= max_tokens:
        return [slice(0, count)] if count else []
    ends = np.array([match.end() for match in _SENTENCE_END.finditer(text)], dtype=np.int64)
    sentence_starts = np.unique(np.searchsorted(encoding.ends, ends, side="left") + 1)
    words = np.flatnonzero(word_starts)
    passages = []
    at = 0
    while at < count:
        limit = at + max_tokens
        end = count if limit >= count else _last(sentence_starts, at, limit) or _last(words, at, limit) or limit
        passages.append(slice(at, end))
        at = end
    return passages


def _last(places: np.ndarray, after: int, limit: int) -> int | None:
    """The last of the sorted `places` in (after, limit], if any."""
    index = int(np.searchsorted(places, limit, side="right")) - 1
    return int(places[index]) if index >= 0 and places[index] > after else None
