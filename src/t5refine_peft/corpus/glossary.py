"""The domain's terms, found in text: longest first, whole words where the script has them, one pass for any number."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ahocorasick_rs import AhoCorasick, Implementation, MatchKind

from t5refine_peft.corpus.characters import mark_borders
from t5refine_peft.corpus.documents import Unit
from t5refine_peft.corpus.folding import Folded, fold
from t5refine_peft.corpus.reading import Corpus, read_documents
from t5refine_peft.corpus.term_lists import Term, read_terms
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError


class TermMatch(NamedTuple):
    """A term's place in a text: characters `start` to `end`, and the term's number in the glossary."""

    start: int
    end: int
    term: int


@dataclass(frozen=True, kw_only=True)
class GlossaryAudit:
    """What a glossary is to a corpus, so that its list can be put right before it is trained on."""

    documents: int
    """Documents read."""
    counts: dict[str, int]
    """Occurrences of each term, its variants included, in the glossary's order."""
    unseen: tuple[str, ...]
    """Terms that never occur, not even inside others."""
    shadowed: dict[str, tuple[str, ...]]
    """Terms that never stand alone, each with the longer terms that it occurs in, the most frequent first."""
    too_long: dict[str, int]
    """Terms and variants of more tokens than a span may have, which are never masked, with their tokens."""
    uncovered: dict[str, str]
    """Terms and variants with characters that the vocabulary has no piece for, and these: they are spelled in bytes."""
    repeated: tuple[str, ...]
    """Spellings that stand in the list twice; the first counts."""


class Glossary:
    """A list of terms.

    Terms and text are compared after NFKC and case folding, so that full-width letters and capitals match, and so do
    a space, several, and a line break.

    >>> Glossary(["heart failure", "heart"]).find("Heart failure, hearts, heart")
    [TermMatch(start=0, end=13, term=0), TermMatch(start=23, end=28, term=1)]
    """

    def __init__(self, terms: Iterable[str | Term]) -> None:
        """Take `terms`, drop blank and repeated ones.

        Raises:
            RefineError: no term is left.
        """
        entries: list[Term] = []
        self._keys: dict[str, int] = {}
        self.repeated: tuple[str, ...] = ()
        """Spellings that came a second time and were passed over."""
        for term in terms:
            entry = term if isinstance(term, Term) else Term(term.strip())
            added = [self._add(spelling, len(entries)) for spelling in entry.spellings]
            self.repeated += tuple(
                s for s, fresh in zip(entry.spellings, added, strict=True) if not fresh and s.strip()
            )
            if any(added):
                entries.append(entry)
        if not entries:
            raise RefineError("the glossary holds no term: expected one term a line, found blank lines only")
        self.entries: tuple[Term, ...] = tuple(entries)
        self.terms: tuple[str, ...] = tuple(entry.text for entry in entries)
        self.weights: tuple[float, ...] = tuple(entry.weight for entry in entries)

    @classmethod
    def load(cls, path: str | Path) -> Glossary:
        """Read a term list, UTF-8: one term a line, or `.csv` and `.tsv` with variants and weights (`read_terms`).

        Raises:
            RefineError: the file can't be read, or holds no term.
        """
        terms = read_terms(Path(path))
        try:
            return cls(terms)
        except RefineError as error:
            raise RefineError(f"{path}: {error}") from None

    @property
    def fingerprint(self) -> str:
        """Two glossaries with one fingerprint find the same terms."""
        spellings = [entry.spellings for entry in self.entries]
        return hashlib.sha256(json.dumps(spellings).encode()).hexdigest()[:16]

    def find(self, text: str) -> list[TermMatch]:
        """Find the terms in `text`: leftmost, longest, not overlapping; offsets are the text's own characters."""
        return [TermMatch(*match) for match in self.find_all(text).tolist()]

    def find_all(self, text: str) -> np.ndarray:
        """Find the terms as `find` does, for callers that go on with arrays.

        Returns:
            (matches, 3) int64: start, end and number of the term, in order.
        """
        folded = fold(text)
        places, real = self._matches(folded, self._longest)
        if real.all():
            return places
        places = self._places(folded)
        chosen = []
        reached = 0
        for at, (start, end) in enumerate(places[:, :2].tolist()):
            if start >= reached:
                reached = end
                chosen.append(at)
        return places[chosen]

    def audit(
        self,
        corpus: Corpus,
        *,
        vocabulary: Vocabulary,
        max_span_tokens: int = 24,
        field: str = "text",
        unit: Unit | None = None,
    ) -> GlossaryAudit:
        """Compare the list with a corpus.

        Args:
            corpus: see `read_documents`; as are `field` and `unit`.
            vocabulary: the base model's.
            max_span_tokens: `CorruptionConfig`'s, the longest term that is masked.

        Raises:
            RefineError: the corpus can't be read or holds no text.
        """
        documents = 0
        counts: Counter[int] = Counter()
        covering: dict[int, Counter[int]] = {}
        for document in read_documents(corpus, field=field, unit=unit):
            documents += 1
            chosen = TermMatch(0, 0, 0)
            for match in map(TermMatch._make, self._places(fold(document.text)).tolist()):
                if match.start >= chosen.end:
                    chosen = match
                    counts[match.term] += 1
                else:
                    covering.setdefault(match.term, Counter())[chosen.term] += 1
        spellings = [spelling for entry in self.entries for spelling in entry.spellings]
        sizes = {spelling: len(vocabulary.encode(spelling).ids) for spelling in spellings}
        uncovered = {spelling: vocabulary.uncovered(spelling) for spelling in spellings}
        return GlossaryAudit(
            documents=documents,
            counts={term: counts[number] for number, term in enumerate(self.terms)},
            unseen=tuple(t for number, t in enumerate(self.terms) if not counts[number] and number not in covering),
            shadowed={
                self.terms[number]: tuple(self.terms[other] for other, _ in others.most_common())
                for number, others in sorted(covering.items())
                if not counts[number]
            },
            too_long={spelling: size for spelling, size in sizes.items() if size > max_span_tokens},
            uncovered={spelling: characters for spelling, characters in uncovered.items() if characters},
            repeated=self.repeated,
        )

    def __getstate__(self) -> dict[str, Any]:
        """All but the automata, which can't be pickled and are built again."""
        return {name: value for name, value in vars(self).items() if name not in ("_every", "_longest")}

    def _add(self, spelling: str, number: int) -> bool:
        """Let a spelling be found as the term `number`; False where it is blank or known."""
        key = mark_borders(fold(spelling).text.strip())
        if not key or key in self._keys:
            return False
        self._keys[key] = number
        return True

    @cached_property
    def _longest(self) -> AhoCorasick:
        return AhoCorasick(self._keys, MatchKind.LeftmostLongest, implementation=Implementation.ContiguousNFA)

    @cached_property
    def _every(self) -> AhoCorasick:
        return AhoCorasick(self._keys, MatchKind.Standard, implementation=Implementation.ContiguousNFA)

    @cached_property
    def _numbers(self) -> np.ndarray:
        """(spellings,) int64: the term of each."""
        return np.fromiter(self._keys.values(), dtype=np.int64)

    def _matches(
        self, folded: Folded, automaton: AhoCorasick, *, overlapping: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """What an automaton finds in a folded text, by the original's characters.

        Returns:
            (matches, 3) int64: start, end and number of the term; and (matches,) bool, which of them are real: the
            others cut through what became longer when it was folded.
        """
        found = automaton.find_matches_as_indexes(mark_borders(folded.text), overlapping=overlapping)
        spellings, starts, ends = np.fromiter(chain.from_iterable(found), dtype=np.int64).reshape(-1, 3).T
        first, last, real = folded.original(starts, ends)
        return np.stack([first, last, self._numbers[spellings]], axis=1), real

    def _places(self, folded: Folded) -> np.ndarray:
        """Every place of every term, overlapping ones too: leftmost first, of those the longest.

        Returns:
            (places, 3) int64: start, end and number of the term.
        """
        matches, real = self._matches(folded, self._every, overlapping=True)
        places: np.ndarray = matches[real]
        return places[np.lexsort((-places[:, 1], places[:, 0]))]
