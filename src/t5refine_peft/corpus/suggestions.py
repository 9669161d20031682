"""Candidates for a term list: what a corpus says more often than other text does."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from t5refine_peft.corpus.characters import written_without_spaces
from t5refine_peft.corpus.documents import Unit
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.reading import Corpus, read_documents
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_JOINT = "\t"
"""Between the words of a run, which are single characters in scripts without spaces."""
_MOST_WORDS, _MOST_CHARACTERS = 4, 6
_MOST_COUNTED = 2_000_000
"""So many different runs counted, the rarer half is forgotten (as in lossy counting, Manku and Motwani 2002)."""
_FUNCTION_WORD = 1 / 2_000
"""A word more frequent than this in other text neither begins nor ends a term."""
_COHESION = 3.0
"""Least mutual information, in nats, of any two parts that a term is made of."""
_FREEDOM = 0.7
"""Least entropy, in nats, of what stands to the left and to the right of a term; less means a part of a longer one."""


@dataclass(frozen=True)
class Suggestion:
    """A candidate for a term list."""

    text: str
    """As the corpus spells it most often."""
    count: int
    """Occurrences in the corpus."""
    keyness: float
    """Log-likelihood ratio of its frequency here against elsewhere (Dunning 1993); 10.8 is p < 0.001."""


def suggest_terms(
    corpus: Corpus,
    *,
    vocabulary: Vocabulary,
    background: Corpus | None = None,
    glossary: Glossary | None = None,
    limit: int = 200,
    min_count: int = 5,
    field: str = "text",
    unit: Unit | None = None,
) -> list[Suggestion]:
    """Propose terms of a corpus, the most telling first, for a person to choose from.

    A candidate is a run of up to four words, or six characters in scripts without spaces, whose parts belong together
    (mutual information) and which is no part of a longer one (entropy of its neighbours). It is ranked by how much
    more frequent it is than in the background; without one, than the tokenizer's unigram model expects of its pieces.

    Args:
        corpus: see `read_documents`; as are `field` and `unit`.
        vocabulary: the base model's.
        background: text of no domain, or of others, in the same language.
        glossary: terms that are known, and not proposed.
        limit: the most candidates.
        min_count: the fewest occurrences.

    Raises:
        RefineError: a corpus can't be read or holds no text, or a limit below 1.
    """
    if limit < 1 or min_count < 1:
        raise RefineError(f"limit and min_count must be at least 1, found {limit} and {min_count}")
    counts = _counts(corpus, field, unit)
    totals = Counter[str]()
    spellings: dict[str, str] = {}
    for run, count in counts.most_common():  # the most frequent spelling comes first
        spellings.setdefault(run.casefold(), run)
        totals[run.casefold()] += count
    words = sum(count for run, count in totals.items() if _JOINT not in run)
    reference = _Reference(vocabulary, None if background is None else _counts(background, field, unit))
    freedom = _Freedom(totals)
    suggestions = []
    for run, count in totals.items():
        text = _shown(spellings[run])
        if count < min_count or not _is_candidate(run) or (glossary and _is_known(glossary, text)):
            continue
        parts = run.split(_JOINT)
        if any(not written_without_spaces(p[0]) and reference.share(p) > _FUNCTION_WORD for p in (parts[0], parts[-1])):
            continue
        if freedom.of(run) < _FREEDOM or _cohesion(parts, totals, words) < _COHESION:
            continue
        keyness = reference.keyness(run, count, words)
        if keyness > 0:
            suggestions.append(Suggestion(text, count, round(keyness, 1)))
    return sorted(suggestions, key=lambda one: (-one.keyness, one.text))[:limit]


class _Reference:
    """How frequent a run is in other text: in a background corpus, or by the tokenizer's piece scores."""

    def __init__(self, vocabulary: Vocabulary, background: Counter[str] | None) -> None:
        self._vocabulary = vocabulary
        self._counts = None
        if background is not None:
            self._counts = Counter[str]()
            for run, count in background.items():
                self._counts[run.casefold()] += count
            self._words = sum(count for run, count in self._counts.items() if _JOINT not in run)

    def share(self, run: str) -> float:
        """The run's share of all words."""
        if self._counts is not None:
            return self._counts[run] / self._words
        return math.exp(self._log_share(run))

    def _log_share(self, run: str) -> float:
        return self._vocabulary.log_probability(self._vocabulary.encode(_shown(run)).ids)

    def keyness(self, run: str, count: int, words: int) -> float:
        """The log-likelihood ratio of `count` in `words`; negative where the run is rarer than elsewhere."""
        if self._counts is None:  # a share that is known, not counted
            log_expected = math.log(words) + self._log_share(run)  # of a long run, too small a share to be a float
            expected = math.exp(log_expected)
            ratio = 2 * (count * (math.log(count) - log_expected) - (count - expected))
            return ratio if count > expected else -ratio
        other = self._counts[run]
        expected = words * (count + other) / (words + self._words)
        rest = count + other - expected
        ratio = 2 * (count * math.log(count / expected) + (other * math.log(other / rest) if other else 0.0))
        return ratio if count > expected else -ratio


class _Freedom:
    """How free the neighbours of a run are: by the runs that are longer by one word."""

    def __init__(self, totals: Counter[str]) -> None:
        self._totals = totals
        self._neighbours: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
        for run, count in totals.items():
            if _JOINT in run:
                self._neighbours[0].setdefault(run.partition(_JOINT)[2], []).append(count)
                self._neighbours[1].setdefault(run.rpartition(_JOINT)[0], []).append(count)

    def of(self, run: str) -> float:
        """The smaller entropy of both sides, in nats; ends of text and punctuation count as a neighbour each."""
        total = self._totals[run]
        return min(_entropy(side.get(run, ()), total) for side in self._neighbours)


def _entropy(counts: list[int] | tuple[()], total: int) -> float:
    lone = total - sum(counts)
    return (lone * math.log(total) + sum(count * math.log(total / count) for count in counts)) / total


def _cohesion(parts: list[str], totals: Counter[str], words: int) -> float:
    """The least mutual information of a run's two parts, wherever it is parted; infinite for one word."""
    whole = math.log(totals[_JOINT.join(parts)] * words)
    return min(
        (
            whole - math.log(totals[_JOINT.join(parts[:at])] or 1) - math.log(totals[_JOINT.join(parts[at:])] or 1)
            for at in range(1, len(parts))
        ),
        default=math.inf,
    )


def _counts(corpus: Corpus, field: str, unit: Unit | None) -> Counter[str]:
    """Occurrences of every run, one word longer than a candidate may be, so that neighbours are known."""
    counts = Counter[str]()
    for document in read_documents(corpus, field=field, unit=unit):
        for words in _word_runs(unicodedata.normalize("NFKC", document.text)):
            most = _MOST_CHARACTERS if any(map(written_without_spaces, words)) else _MOST_WORDS
            line = _JOINT.join(words)
            starts = [0]
            for word in words:
                starts.append(starts[-1] + len(word) + 1)
            counts.update(
                line[starts[first] : starts[last] - 1]
                for first in range(len(words))
                for last in range(first + 1, min(first + most + 1, len(words)) + 1)
            )
        if len(counts) > _MOST_COUNTED:
            counts = _more_frequent_half(counts)
    return counts


def _more_frequent_half(counts: Counter[str]) -> Counter[str]:
    """Half of the runs at most: so that it takes long to have too many again, however many are seen twice."""
    occurrences = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    forgotten = int(np.partition(occurrences, len(counts) // 2)[len(counts) // 2])
    return Counter({run: count for run, count in counts.items() if count > forgotten})


def _word_runs(text: str) -> Iterator[list[str]]:
    """Words, single characters where the script has no spaces, that follow on each other without punctuation."""
    run: list[str] = []
    reached = 0
    for match in _WORD.finditer(text):
        if run and text[reached : match.start()].strip(" \n"):
            yield run
            run = []
        run += _words(match[0])
        reached = match.end()
    if run:
        yield run


def _words(text: str) -> Iterator[str]:
    """A stretch of letters and digits as words: characters of scripts without spaces one by one."""
    borders = [
        at for at in range(1, len(text)) if written_without_spaces(text[at]) or written_without_spaces(text[at - 1])
    ]
    return (text[start:end] for start, end in pairwise([0, *borders, len(text)]))


def _is_candidate(run: str) -> bool:
    """Whether a run has the shape of a term: letters at both ends, and more than a character."""
    parts = run.split(_JOINT)
    most = _MOST_CHARACTERS if any(map(written_without_spaces, parts)) else _MOST_WORDS
    letters = all(any(char.isalpha() for char in part) for part in (parts[0], parts[-1]))
    return letters and len(parts) <= most and len(_shown(run)) > 1


def _shown(run: str) -> str:
    """A run as it is written: with spaces between words that have them."""
    parts = run.split(_JOINT)
    shown = parts[0]
    for before, after in pairwise(parts):
        spaced = not written_without_spaces(before[-1]) and not written_without_spaces(after[0])
        shown += (" " if spaced else "") + after
    return shown


def _is_known(glossary: Glossary, text: str) -> bool:
    return any((match.start, match.end) == (0, len(text)) for match in glossary.find(text))
