"""Put the answers into the text, and leave all else as the user wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from t5refine_peft.restoration.constraints import GapRule
from t5refine_peft.restoration.decoding import Answer
from t5refine_peft.restoration.gaps import Gap
from t5refine_peft.restoration.results import Candidate, Restoration, RestoredGap
from t5refine_peft.restoration.spacing import fit

_OPEN = "___"
"""What an empty range that is left open becomes."""


def put_together(
    text: str,
    gaps: Sequence[Gap],
    answers: Sequence[Sequence[Answer]],
    *,
    decode: Callable[[Sequence[int]], str],
    rules: Sequence[GapRule] | None = None,
    min_score: float = 0.0,
    num_candidates: int | None = None,
) -> Restoration:
    """Fill the gaps of a text.

    Damage that was found, and that the model would answer with what stands there, is no damage: it is left out.

    Args:
        text: the user's.
        gaps: in order, apart.
        answers: for each gap its answers, the best first.
        decode: token ids to text.
        rules: for each gap its rule; an answer that is one of its terms is written as the glossary has it.
        min_score: gaps whose best answer is less probable are left open.
        num_candidates: how many different answers to a gap are told of; None is all.
    """
    parts: list[str] = []
    filled = []
    source_lengths = []
    reached = length = 0
    before = ""
    for number, (gap, found) in enumerate(zip(gaps, answers, strict=True)):
        kept = text[reached : gap.start]
        before = kept[-1:] or before
        next_start = gaps[number + 1].start if number + 1 < len(gaps) else len(text)
        after = text[gap.end : min(next_start, gap.end + 1)]
        scores: dict[str, float] = {}
        for answer in found:
            said = decode(answer.ids)
            if rules is not None:
                said = _as_listed(said, answer.ids, rules[number])
            scores.setdefault(fit(said, before, after), answer.probability)
        candidates = tuple(Candidate(*pair) for pair in islice(scores.items(), num_candidates))
        stood = text[gap.start : gap.end]
        best = candidates[0]
        is_open = not best.score >= min_score  # a score that is no number is not good enough either
        written = (stood or _OPEN) if is_open else best.text
        start = length + len(kept)
        parts += [kept, written]
        length = start + len(written)
        before = written[-1:] or before
        reached = gap.end
        if not (gap.found and best.text == stood):
            filled.append(RestoredGap(start, length, written, best.score, candidates, gap.found, is_open))
            source_lengths.append(len(stood))
    return Restoration("".join([*parts, text[reached:]]), tuple(filled), tuple(source_lengths))


def _as_listed(said: str, ids: Sequence[int], rule: GapRule) -> str:
    """An answer as the glossary spells it: a vocabulary knows no CO₂, only CO2."""
    node = rule.terms.node(ids) if rule.terms is not None else None
    if node is None or node.term is None:
        return said
    return f"{' ' if said.startswith(' ') else ''}{node.term}"
