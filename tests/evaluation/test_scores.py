from __future__ import annotations

import pytest

from t5refine_peft import EvaluationReport
from t5refine_peft.evaluation.questions import Blank, Question, QuestionSet
from t5refine_peft.evaluation.scores import Filling


def question(document: str, *blanks: Blank, part: str = "domain") -> Question:
    text = "a " + " b ".join(f"<extra_id_{number}>" for number in range(len(blanks)))
    return Question(text=text, blanks=blanks, document=document, part=part)


def term(truth: str, count: int, *, copy: bool = False, masked: bool = True) -> Blank:
    return Blank(truth=truth, kind="term", copy_left=copy, training_count=count, masked_in_training=masked)


RANDOM = Blank(truth="of the", kind="random", copy_left=False)
QUESTIONS = QuestionSet(
    (
        question("1", term("stent", 120, copy=True), term("aorta", 5)),
        question("2", term("stent", 120), term("心力衰竭", 0, masked=False)),
        question("3", RANDOM),
        question("4", RANDOM, part="general"),
    )
)


def said(*texts: str) -> list[tuple[Filling, ...]]:
    """Fillings with falling scores; | stands between a gap's candidates."""
    return [
        tuple(Filling(part, 0.9 - 0.2 * rank) for rank, part in enumerate(text.split("|")) if part) for text in texts
    ]


BASE = said("vein", "stent", "the", "心衰", "of the", "of the")
ADAPTER = said("Stent", "aortas|Aorta", "STENT", "心力衰竭", "in a", "")


def test_every_score_by_hand():
    report = EvaluationReport.of(QUESTIONS, {"base": BASE, "heart": ADAPTER})
    base, heart = report.scores
    assert (base.exact_match.value, base.exact_match.count) == (0.0, 4)
    assert heart.exact_match.value == 0.75
    assert heart.macro_exact_match == pytest.approx(2 / 3)  # stent 2 of 2, aorta 0 of 1, 心力衰竭 1 of 1
    assert (base.top5, heart.top5) == (None, 1.0)
    assert heart.character_error_rate == pytest.approx(1 / 19)
    assert 80 < heart.chrf < 100
    by_frequency = {name: (part.value, part.count) for name, part in heart.by_frequency.items()}
    assert by_frequency == {"0": (1.0, 1), "1–9": (0.0, 1), "100+": (1.0, 2)}
    assert list(heart.by_frequency) == ["0", "1–9", "100+"]
    assert {name: (part.value, part.count) for name, part in heart.by_length.items()} == {
        "3–4": (1.0, 1), "5–8": (pytest.approx(2 / 3), 3),
    }  # fmt: skip
    assert {name: (part.value, part.count) for name, part in heart.by_copies.items()} == {
        "0": (pytest.approx(2 / 3), 3), "1+": (1.0, 1),
    }  # fmt: skip
    assert (heart.never_masked.value, heart.never_masked.count) == (1.0, 1)
    assert heart.calibration_error == pytest.approx(0.15)
    assert heart.coverage[-1] == (1.0, 0.75)
    assert (base.random_exact_match.value, heart.random_exact_match.value) == (1.0, 0.0)
    assert (base.general_exact_match.value, heart.general_exact_match.value) == (1.0, 0.0)
    assert (base.well_formed, heart.well_formed) == (1.0, 0.75)
    (comparison,) = report.comparisons
    assert (comparison.system, comparison.against) == ("heart", "base")
    assert comparison.difference.value == 0.75
    assert comparison.errors_removed == 0.75
    assert comparison.p_value == 0.5  # two documents: four ways to swap, two as extreme


def test_terms_missed_most_often_with_what_was_said():
    report = EvaluationReport.of(QUESTIONS, {"base": BASE})
    first, *_ = report.missed_terms("base")
    assert (first.term, first.asked, first.missed, first.instead) == ("stent", 2, 2, ("vein", "the"))
    assert first.missed_by_first == 2
    assert len(report.missed_terms("base", limit=1)) == 1
    (aorta,) = EvaluationReport.of(QUESTIONS, {"base": BASE, "heart": ADAPTER}).missed_terms("heart")
    assert (aorta.term, aorta.missed, aorta.missed_by_first) == ("aorta", 1, 1)
    assert report.comparisons == ()


def test_without_terms_all_gaps_of_the_domain_count():
    questions = QuestionSet((question("1", RANDOM), question("2", RANDOM, part="general")))
    scores = EvaluationReport.of(questions, {"x": [(Filling("of the"),), ()]}).scores[0]
    assert (scores.exact_match.value, scores.exact_match.count) == (1.0, 1)
    assert (scores.never_masked, scores.calibration_error, scores.calibration, scores.by_frequency) == (
        None,
        None,
        (),
        {},
    )


def test_plain_data_hold_no_text_of_the_questions():
    plain = repr(EvaluationReport.of(QUESTIONS, {"base": BASE, "heart": ADAPTER}).to_dict())
    assert "questions_fingerprint" in plain
    assert not any(word in plain for word in ("stent", "aorta", "心力衰竭", "vein"))
