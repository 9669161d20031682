"""From what the user asks for to the rule of each gap."""

from __future__ import annotations

import math
from collections.abc import Sequence

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError
from t5refine_peft.restoration.constraints import GapRule
from t5refine_peft.restoration.gaps import Gap, counted_characters
from t5refine_peft.restoration.trie import TermTrie

GlossaryChoice = Glossary | Sequence[Glossary | Sequence[Glossary | None] | None] | None
"""One glossary for all gaps, one for each text, or one for each given gap of each text."""


class RuleBook:
    """The rules of gaps; a glossary's trie is built once and kept."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tries: dict[tuple[str, int | None], TermTrie] = {}

    def rules(
        self,
        texts: Sequence[str],
        places: Sequence[Sequence[Gap]],
        *,
        glossary: GlossaryChoice,
        term_bias: float,
        max_gap_tokens: int,
        count_marks: bool,
    ) -> list[list[GapRule]]:
        """For each text, for each of its gaps, what the answer may be.

        Raises:
            RefineError: a glossary has no term of the length of a gap, or there are not as many as texts or gaps.
        """
        if max_gap_tokens < 1:
            raise RefineError(f"max_gap_tokens must be at least 1, found {max_gap_tokens}")
        if not term_bias > 0:
            raise RefineError(f"the glossary's bias must be above 0 nats, found {term_bias}")
        made: dict[tuple[int, int | None], GapRule] = {}
        found = []
        for text, gaps, glossaries in zip(texts, places, _spread(glossary, places, term_bias), strict=True):
            rules = []
            for gap, own in zip(gaps, glossaries, strict=True):
                characters = counted_characters(text, gap) if count_marks and not gap.found else None
                key = (id(own), characters)
                if key not in made:
                    made[key] = GapRule(
                        max_tokens=max_gap_tokens,
                        characters=characters,
                        terms=None if own is None else self._trie(own, characters if math.isinf(term_bias) else None),
                        term_bias=term_bias,
                    )
                rules.append(made[key])
            found.append(rules)
        return found

    def _trie(self, glossary: Glossary, characters: int | None) -> TermTrie:
        key = (glossary.fingerprint, characters)
        if key not in self._tries:
            trie = TermTrie.of_terms(glossary, self._vocabulary, characters=characters)
            if not trie:
                length = f" of {characters} characters" if characters is not None else " that its vocabulary can write"
                raise RefineError(f"the glossary holds no term{length}; give another, or don't count the marks")
            self._tries[key] = trie
        return self._tries[key]


def _spread(glossary: GlossaryChoice, places: Sequence[Sequence[Gap]], term_bias: float) -> list[list[Glossary | None]]:
    """For each gap its glossary. Damage that was found need be no term: a strict one leaves it free."""
    if isinstance(glossary, str):
        raise RefineError(f"expected a Glossary, or one for each text, found {glossary!r}; load it with Glossary.load")
    each_text = [glossary] * len(places) if glossary is None or isinstance(glossary, Glossary) else list(glossary)
    if len(each_text) != len(places):
        raise RefineError(f"expected a glossary for each of {len(places)} texts, found {len(each_text)}")
    spread: list[list[Glossary | None]] = []
    for number, (own, gaps) in enumerate(zip(each_text, places, strict=True), start=1):
        given = sum(not gap.found for gap in gaps)
        if own is None or isinstance(own, Glossary):
            for_given, for_found = [own] * given, None if math.isinf(term_bias) else own
        else:
            for_given, for_found = list(own), None
        if len(for_given) != given:
            raise RefineError(f"text {number} has {given} gaps: expected a glossary for each, found {len(for_given)}")
        left = iter(for_given)
        spread.append([for_found if gap.found else next(left) for gap in gaps])
    return spread
