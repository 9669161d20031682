"""A baseline without a model: the filling that training most often has between the same neighbours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from t5refine_peft.corpus.pairs import SENTINEL
from t5refine_peft.corpus.tokenization import Vocabulary


class FrequencyBaseline:
    """Fills a gap with the term that most often stood between the same characters in training; longest context first.

    Backs off from six characters on both sides, over three, and over those before the gap alone, to the most frequent
    term.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], vocabulary: Vocabulary) -> None:
        self._seen: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for row in rows:
            ids = list(row["ids"])
            for start, end, _ in row["term_spans"]:
                before, term, after = map(vocabulary.decode, (ids[:start], ids[start:end], ids[end:]))
                for context in _contexts(before, after):
                    self._seen[context][term.strip()] += 1

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Restore texts with `<extra_id_0>`, ... in them, each gap on its own."""
        return [self._restore(text) for text in texts]

    def _restore(self, text: str) -> str:
        visible = SENTINEL.split(text)[::2]
        out = visible[0]
        for before, after in pairwise(visible):
            counts = next(self._seen[context] for context in _contexts(before, after) if context in self._seen)
            out += counts.most_common(1)[0][0] + after
        return out


def _contexts(before: str, after: str) -> list[tuple[str, ...]]:
    """From the most telling context to none; spaces beside the gap don't count."""
    left, right = before.strip(), after.strip()
    return [
        ("both six", left[-6:], right[:6]),
        ("both three", left[-3:], right[:3]),
        ("left six", left[-6:]),
        ("left three", left[-3:]),
        ("any",),
    ]
