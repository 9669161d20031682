"""What is told of a corpus and its term list, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from t5refine_peft.corpus.documents import SPLITS
from t5refine_peft.corpus.export import ShownPassage
from t5refine_peft.corpus.glossary import GlossaryAudit
from t5refine_peft.corpus.prepared import PreparationSummary

_NAMED = 10
"""So many terms of each kind are named; --json names all."""


def summary_lines(summary: PreparationSummary) -> Iterator[str]:
    """The corpus: what each split holds."""
    yield f"{'':16}{''.join(f'{split:>14}' for split in SPLITS)}"
    for name in ("documents", "passages", "tokens", "term_occurrences"):
        counts = getattr(summary, name)
        yield f"{name.replace('_', ' '):16}{''.join(f'{counts[split]:14,}' for split in SPLITS)}"


def audit_lines(audit: GlossaryAudit) -> Iterator[str]:
    """The term list: what occurs, and what is wrong with the rest."""
    seen = {term: count for term, count in audit.counts.items() if count}
    yield f"{len(seen):,} of {len(audit.counts):,} terms occur, {sum(seen.values()):,} times in all"
    most = sorted(seen, key=lambda term: -seen[term])
    yield from _listed("most frequent", (f"{term} ({seen[term]:,})" for term in most[:_NAMED]), min(len(most), _NAMED))
    yield from _listed("never seen", audit.unseen, len(audit.unseen))
    yield from _listed(
        "only within longer terms",
        (f"{term} (in {others[0]})" for term, others in audit.shadowed.items()),
        len(audit.shadowed),
    )
    yield from _listed(
        "longer than a span may be, so never masked",
        (f"{term} ({size} tokens)" for term, size in audit.too_long.items()),
        len(audit.too_long),
    )
    yield from _listed(
        "with characters outside the vocabulary, spelled in bytes",
        (f"{term} ({characters})" for term, characters in audit.uncovered.items()),
        len(audit.uncovered),
    )
    yield from _listed("listed twice", audit.repeated, len(audit.repeated))


def passage_lines(passage: ShownPassage) -> Iterator[str]:
    """A corrupted passage, with [...] around what is masked and *...* around terms."""
    yield ""
    yield f"{passage.document}: {passage.masked_tokens} of {passage.tokens} tokens masked"
    yield passage.text
    if passage.terms:
        yield f"  terms: {', '.join(dict.fromkeys(passage.terms))}"


def _listed(title: str, items: Iterable[str], count: int) -> Iterator[str]:
    if count:
        named = [item for item, _ in zip(items, range(_NAMED), strict=False)]
        more = f", and {count - len(named):,} more" if count > len(named) else ""
        yield f"  {title}: {', '.join(named)}{more}"
