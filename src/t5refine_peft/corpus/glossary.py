"""The domain's terms, found in text: longest first, whole words where the script has them, one pass for any number."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ahocorasick

from t5refine_peft.corpus.characters import written_without_spaces
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
    """Terms of more tokens than a span may have, which are never masked, with their tokens."""
    uncovered: dict[str, str]
    """Terms with characters that the vocabulary has no piece for, and these: they are spelled in bytes."""
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
        self._automaton = ahocorasick.Automaton()
        entries: list[Term] = []
        self.repeated: tuple[str, ...] = ()
        """Spellings that came a second time and were passed over."""
        for term in terms:
            entry = term if isinstance(term, Term) else Term(term.strip())
            spellings = (entry.text, *entry.variants)
            added = [self._add(spelling, len(entries)) for spelling in spellings]
            self.repeated += tuple(s for s, fresh in zip(spellings, added, strict=True) if not fresh and s.strip())
            if any(added):
                entries.append(entry)
        if not entries:
            raise RefineError("the glossary holds no term: expected one term a line, found blank lines only")
        self._automaton.make_automaton()
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
        spellings = [[entry.text, *entry.variants] for entry in self.entries]
        return hashlib.sha256(json.dumps(spellings).encode()).hexdigest()[:16]

    def find(self, text: str) -> list[TermMatch]:
        """Find the terms in `text`: leftmost, longest, not overlapping; offsets are the text's own characters."""
        matches: list[TermMatch] = []
        reached = 0
        for match in self._places(fold(text)):
            if match.start >= reached:
                reached = match.end
                matches.append(match)
        return matches

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
            for match in self._places(fold(document.text)):
                if match.start >= chosen.end:
                    chosen = match
                    counts[match.term] += 1
                else:
                    covering.setdefault(match.term, Counter())[chosen.term] += 1
        sizes = {term: len(vocabulary.encode(term).ids) for term in self.terms}
        uncovered = {term: vocabulary.uncovered(term) for term in self.terms}
        return GlossaryAudit(
            documents=documents,
            counts={term: counts[number] for number, term in enumerate(self.terms)},
            unseen=tuple(t for number, t in enumerate(self.terms) if not counts[number] and number not in covering),
            shadowed={
                self.terms[number]: tuple(self.terms[other] for other, _ in others.most_common())
                for number, others in sorted(covering.items())
                if not counts[number]
            },
            too_long={term: size for term, size in sizes.items() if size > max_span_tokens},
            uncovered={term: characters for term, characters in uncovered.items() if characters},
            repeated=self.repeated,
        )

    def _add(self, spelling: str, number: int) -> bool:
        """Let the automaton find a spelling as the term `number`; False where it is blank or known."""
        key = fold(spelling).text.strip()
        if not key or key in self._automaton:
            return False
        self._automaton.add_word(key, (len(key), number, _is_spaced(key[0]), _is_spaced(key[-1])))
        return True

    def _places(self, folded: Folded) -> Iterator[TermMatch]:
        """Every place of every term, overlapping ones too: leftmost first, of those the longest."""
        text = folded.text
        found = []
        for last, (length, number, spaced_first, spaced_last) in self._automaton.iter(text):
            start, end = last + 1 - length, last + 1
            if (spaced_first and start and _is_spaced(text[start - 1])) or (
                spaced_last and end < len(text) and _is_spaced(text[end])
            ):
                continue  # inside a word
            found.append((start, -end, number))
        found.sort()
        for start, negative_end, number in found:
            place = folded.original(start, -negative_end)
            if place is not None:
                yield TermMatch(*place, number)


def _is_spaced(char: str) -> bool:
    """Whether `char` is a letter or digit of a script that puts spaces between words."""
    return char.isalnum() and not written_without_spaces(char)
