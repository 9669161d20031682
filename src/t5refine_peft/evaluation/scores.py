"""From systems' answers to what an evaluation reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from t5refine_peft.evaluation import metrics
from t5refine_peft.evaluation.metrics import CalibrationBin, Estimate
from t5refine_peft.evaluation.questions import Blank, Question, QuestionSet
from t5refine_peft.restoration.spacing import normalized

FREQUENCY_BORDERS = (1, 10, 100)
"""Bands of occurrences in the training documents: none, 1-9, 10-99, more."""
LENGTH_BORDERS = (3, 5, 9, 17)
"""Bands of characters: 0-2, 3-4, 5-8, 9-16, more."""

COPY_BORDERS = (1,)
"""Bands of other copies in the visible text: none, one or more."""


@dataclass(frozen=True)
class Filling:
    """What a system would put into a gap, and its probability by the system, from 0 to 1; None where it gives none."""

    text: str
    score: float | None = None


Answers = Sequence[Sequence[Filling]]
"""For each gap of a `QuestionSet`, a system's fillings, best first; none where its answer was ill-formed."""


@dataclass(frozen=True, kw_only=True)
class SystemScores:
    """A system's scores. Exact match is after NFKC and case folding; intervals are 95%, over documents.

    Headline figures (`exact_match` to `coverage`) are of the gaps for terms; where a set asks for none, of all gaps of
    the domain. None stands for what the questions or the answers don't tell.
    """

    system: str
    exact_match: Estimate
    macro_exact_match: float
    """Mean over terms."""
    top5: float | None
    """Share of gaps whose truth is among the five best candidates; None for a system that gives one."""
    character_error_rate: float
    """Edits a character of the truths."""
    chrf: float
    """chrF2 on the gaps, 0 to 100."""
    by_frequency: dict[str, Estimate]
    """Exact match by occurrences in the training documents."""
    by_length: dict[str, Estimate]
    """Exact match by the truth's characters."""
    by_copies: dict[str, Estimate]
    """Exact match where no other copy stands in the text (`0`), and where it can be read off one (`1+`)."""
    never_masked: Estimate | None
    """Exact match for terms that training never masked."""
    calibration_error: float | None
    """Expected calibration error of the best candidate's probability; None for a system that gives no scores."""
    calibration: tuple[CalibrationBin, ...]
    coverage: tuple[tuple[float, float], ...]
    """Pairs of coverage and accuracy: only the most probable share of the gaps answered."""
    random_exact_match: Estimate | None
    """Random words in the domain's documents."""
    general_exact_match: Estimate | None
    """Random words in general text: what was forgotten shows here."""
    well_formed: float
    """Share of texts that came back with every gap filled and nothing else changed."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems on the same gaps.

    Attributes:
        system: the one that is asked about.
        against: the other.
        difference: exact match of `system` less that of `against`.
        p_value: of a paired, two-sided permutation test over documents.
        errors_removed: share of the errors of `against` that `system` does away with.
    """

    system: str
    against: str
    difference: Estimate
    p_value: float
    errors_removed: float


@dataclass(frozen=True, kw_only=True)
class MissedTerm:
    """A term that a system often missed.

    Attributes:
        term: as the first of its gaps has it.
        asked: gaps that it belongs into.
        missed: those of them in which the system said something else.
        missed_by_first: the same for the report's first system.
        instead: what the system said instead, most often first.
    """

    term: str
    asked: int
    missed: int
    missed_by_first: int
    instead: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Systems side by side on one set of questions, the first of them being what the others are compared with."""

    questions: QuestionSet
    answers: Mapping[str, Answers]
    scores: tuple[SystemScores, ...]
    comparisons: tuple[Comparison, ...]

    @classmethod
    def of(cls, questions: QuestionSet, answers: Mapping[str, Answers], *, seed: int = 0) -> EvaluationReport:
        """Score `answers` of one or more systems; `seed` is that of bootstrap and permutations."""
        scores = tuple(score_system(questions, name, given, seed=seed) for name, given in answers.items())
        asked = headline_gaps(questions)
        documents = [questions.blanks[number][0].document for number in asked]
        first, *others = ((name, exact(questions, given, asked)) for name, given in answers.items())
        comparisons = []
        for name, right in others:
            difference, p_value = metrics.paired_difference(right, first[1], documents, seed=seed)
            removed = metrics.errors_removed(right, first[1])
            comparisons.append(
                Comparison(
                    system=name, against=first[0], difference=difference, p_value=p_value, errors_removed=removed
                )
            )
        return cls(questions=questions, answers=answers, scores=scores, comparisons=tuple(comparisons))

    def missed_terms(self, system: str, *, limit: int = 15) -> list[MissedTerm]:
        """The terms that `system` missed most often."""
        truths: dict[str, str] = {}
        asked, missed, missed_by_first = Counter[str](), Counter[str](), Counter[str]()
        first = self.answers[self.scores[0].system]
        instead: dict[str, Counter[str]] = {}
        for number in headline_gaps(self.questions):
            blank, candidates = self.questions.blanks[number][1], self.answers[system][number]
            key = normalized(blank.truth)
            truths.setdefault(key, blank.truth)
            asked[key] += 1
            missed_by_first[key] += not _right(blank, first[number])
            if not _right(blank, candidates):
                missed[key] += 1
                instead.setdefault(key, Counter())[candidates[0].text.strip() if candidates else ""] += 1
        return [
            MissedTerm(
                term=truths[key],
                asked=asked[key],
                missed=count,
                missed_by_first=missed_by_first[key],
                instead=tuple(text for text, _ in instead[key].most_common(3)),
            )
            for key, count in sorted(missed.items(), key=lambda item: (-item[1], item[0]))[:limit]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Every score as plain data. It holds no text of the questions."""
        return {
            "questions": len(self.questions.questions),
            "questions_fingerprint": self.questions.fingerprint,
            "systems": [asdict(scores) for scores in self.scores],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
        }


def headline_gaps(questions: QuestionSet) -> list[int]:
    """The gaps of the domain that headline figures are of: those for terms, or all where none is."""
    domain = [number for number, (question, _) in enumerate(questions.blanks) if question.part == "domain"]
    return [number for number in domain if questions.blanks[number][1].kind == "term"] or domain


def exact(questions: QuestionSet, answers: Answers, gaps: Sequence[int]) -> list[bool]:
    """For each of `gaps`, whether the best candidate is the truth."""
    return [_right(questions.blanks[number][1], answers[number]) for number in gaps]


def score_system(questions: QuestionSet, system: str, answers: Answers, *, seed: int = 0) -> SystemScores:
    """All scores of one system."""
    asked = headline_gaps(questions)
    blanks = [questions.blanks[number][1] for number in asked]
    given = [answers[number] for number in asked]
    right = exact(questions, answers, asked)
    truths, texts = [blank.truth for blank in blanks], [best[0].text if best else "" for best in given]
    scored = [
        (best[0].score, hit) for best, hit in zip(given, right, strict=True) if best and best[0].score is not None
    ]
    probabilities, hits = [score for score, _ in scored], [hit for _, hit in scored]
    bins = metrics.calibration(probabilities, hits)

    def estimate(keep: Callable[[Question, Blank], bool]) -> Estimate | None:
        gaps = [number for number, pair in enumerate(questions.blanks) if keep(*pair)]
        documents = [questions.blanks[number][0].document for number in gaps]
        return metrics.interval(exact(questions, answers, gaps), documents, seed=seed) if gaps else None

    def strata(name: Callable[[Blank], str | None]) -> dict[str, Estimate]:
        groups: dict[str, list[int]] = {}
        for place, blank in enumerate(blanks):
            if (group := name(blank)) is not None:
                groups.setdefault(group, []).append(place)
        return {
            group: metrics.interval(
                [right[place] for place in places],
                [questions.blanks[asked[place]][0].document for place in places],
                seed=seed,
            )
            for group, places in groups.items()
        }

    return SystemScores(
        system=system,
        exact_match=metrics.interval(right, [questions.blanks[number][0].document for number in asked], seed=seed),
        macro_exact_match=metrics.macro(right, [normalized(truth) for truth in truths]),
        top5=_top5(truths, given),
        character_error_rate=metrics.character_error_rate(truths, texts),
        chrf=metrics.chrf(truths, texts),
        by_frequency=_ordered(strata(_frequency), FREQUENCY_BORDERS),
        by_length=_ordered(strata(lambda blank: metrics.band(len(blank.truth), LENGTH_BORDERS)), LENGTH_BORDERS),
        by_copies=_ordered(strata(lambda blank: metrics.band(int(blank.copy_left), COPY_BORDERS)), COPY_BORDERS),
        never_masked=estimate(lambda _, blank: blank.kind == "term" and blank.masked_in_training is False),
        calibration_error=metrics.calibration_error(bins) if scored else None,
        calibration=tuple(bins),
        coverage=tuple(metrics.accuracy_at_coverage(probabilities, hits)),
        random_exact_match=estimate(lambda question, blank: question.part == "domain" and blank.kind == "random"),
        general_exact_match=estimate(lambda question, _: question.part == "general"),
        well_formed=_well_formed(questions, answers),
    )


def _right(blank: Blank, candidates: Sequence[Filling]) -> bool:
    return bool(candidates) and metrics.is_exact(blank.truth, candidates[0].text)


def _top5(truths: Sequence[str], given: Answers) -> float | None:
    """Share of gaps whose truth is among the first five; None where no gap has more than one candidate."""
    if all(len(candidates) < 2 for candidates in given):
        return None
    return metrics.micro(
        [
            any(metrics.is_exact(truth, filling.text) for filling in candidates[:5])
            for truth, candidates in zip(truths, given, strict=True)
        ]
    )


def _frequency(blank: Blank) -> str | None:
    return None if blank.training_count is None else metrics.band(blank.training_count, FREQUENCY_BORDERS)


def _ordered(groups: dict[str, Estimate], borders: Sequence[int]) -> dict[str, Estimate]:
    names = [metrics.band(value, borders) for value in (0, *borders)]
    return {name: groups[name] for name in names if name in groups}


def _well_formed(questions: QuestionSet, answers: Answers) -> float:
    whole = []
    at = 0
    for question in questions.questions:
        given = answers[at : at + len(question.blanks)]
        whole.append(all(best and best[0].text.strip() for best in given))
        at += len(question.blanks)
    return metrics.micro(whole)
