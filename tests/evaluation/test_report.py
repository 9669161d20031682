from __future__ import annotations

import random
import re
from html.parser import HTMLParser

import pytest
from browser import lay_out

from t5refine_peft import EvaluationReport
from t5refine_peft.evaluation.questions import Blank, Question, QuestionSet
from t5refine_peft.evaluation.report import render_report
from t5refine_peft.evaluation.scores import Filling

ENGLISH = ["furosemide", "heart failure", "percutaneous transluminal coronary angioplasty", "<b>bisoprolol</b> & co"]
CHINESE = ["撤销权", "买受人", "因不可抗力不能履行合同的免责事由", "标的物"]
LOG = [
    *({"loss": 3.0 - step / 100, "step": step} for step in range(10, 210, 10)),
    *({"eval_loss": 3 - n / 2, "eval_term_exact_match": n / 8, "step": n * 50} for n in (1, 2, 3, 4)),
    {"step": 50, "stopping_phase": "early", "stopping_reason": "held until step 60; best loss 2.6"},
    {"step": 100, "stopping_phase": "middle", "stopping_reason": "watched: 1 of 5 evaluations"},
    {"step": 200, "stopping_phase": "late", "stopping_reason": "the trend is watched for 1 more evaluation"},
]  # fmt: skip


def make_report(
    terms: list[str], *, adapters: tuple[str, ...] = ("cardiology",), scored: bool = True
) -> EvaluationReport:
    """Random answers to questions about `terms`: each system better than the one before."""
    picker = random.Random(0)
    questions = QuestionSet(
        tuple(
            Question(
                text=f"secret passage {number} with <extra_id_0> in it",
                blanks=(
                    Blank(
                        truth=picker.choice(terms), kind="term", copy_left=number % 3 == 0,
                        training_count=(count := picker.choice([0, 4, 40, 400])), masked_in_training=count > 0,
                    ),
                ),
                document=str(number // 2),
            )
            for number in range(80)
        )
    )  # fmt: skip
    answers = {}
    for rank, system in enumerate(("base", *adapters)):
        answers[system] = [
            (
                Filling(
                    blank.truth if picker.random() < 0.2 + 0.5 * rank else picker.choice(terms),
                    picker.random() if scored else None,
                ),
            )
            for _, blank in questions.blanks
        ]
    return EvaluationReport.of(questions, answers)


class Tags(HTMLParser):
    """Checks that tags close in the order in which they were opened, and keeps the text in one language."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, language: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.hidden = "zh" if language == "en" else "en"

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not any(tag == "style" or attributes.get("class") == self.hidden for tag, attributes in self.open):
            self.text += data


def shown(page: str, language: str = "en") -> str:
    parser = Tags(language)
    parser.feed(page)
    assert parser.open == []
    return " ".join(parser.text.split())


def test_the_page_says_in_one_sentence_how_much_better_the_adapter_is():
    report = make_report(ENGLISH)
    base, adapter = report.scores
    page = render_report(report, title="cardiology")
    assert (
        f"cardiology restores {adapter.exact_match.value:.0%} of 80 held-out terms exactly, the base "
        f"{base.exact_match.value:.0%}: {report.comparisons[0].errors_removed:.0%} of its errors are gone "
        f"(p = {report.comparisons[0].p_value:.3f})."
    ) in shown(page)
    assert f"cardiology 准确恢复了 {adapter.exact_match.value:.0%}，基座模型为" in shown(page, "zh")


def test_it_says_so_where_the_adapter_is_no_better():
    report = make_report(ENGLISH)
    swapped = EvaluationReport.of(
        report.questions, {"base": report.answers["cardiology"], "cardiology": report.answers["base"]}
    )
    assert "no more than the base with" in shown(render_report(swapped, title="x"))
    alone = EvaluationReport.of(report.questions, {"base": report.answers["base"]})
    share = f"{alone.scores[0].exact_match.value:.0%}"
    assert f"base restores {share} of 80 held-out terms exactly." in shown(render_report(alone, title="x"))


def test_every_section_is_there_and_no_text_of_the_documents():
    page = render_report(
        make_report(ENGLISH), title="cardiology", log_history=LOG, best_step=200, steps=200, stopped_because="all done"
    )
    text = shown(page)
    for part in (
        "Restored exactly", "By occurrences in training", "By length", "By other copies", "Can its score be trusted?",
        "If only the surest are kept", "Most often missed by cardiology", "Loss by step", "Restored exactly, by step",
        "Verdicts of early stopping", "held until step 60; best loss 2.6", "Best at step 200; all done after step 200.",
    ):  # fmt: skip
        assert part in text, part
    assert page.count("<figure>") == 8
    assert "secret passage" not in page
    assert "Examples" not in text


def test_it_tells_how_far_scores_and_findings_can_be_trusted():
    measured = {
        "calibration": {
            "temperature": 1.5, "fitted_gaps": 200, "gaps": 300, "error_before": 0.121, "error_after": 0.034,
        },
        "detection": {"words": 900, "damaged": 90, "precision": 0.75, "recall": 0.5},
    }  # fmt: skip
    page = render_report(make_report(ENGLISH), title="cardiology", confidence=measured)
    assert "Calibration error on 300 gaps of the test documents: 0.121 before, 0.034 after." in page
    assert "finds 50% of the damaged ones; 75% of its findings are damage." in page
    assert "Calibration error on" not in render_report(make_report(ENGLISH), title="cardiology")


def test_examples_are_shown_where_they_are_asked_for_and_nothing_is_taken_for_markup():
    page = render_report(make_report(ENGLISH), title="<script>alert(1)</script>", examples=True)
    assert page.count('<div class="example">') == 20
    assert "secret passage 0 with" in shown(page)
    assert '<mark class="right">' in page
    assert '<mark class="wrong">' in page
    assert "<script" not in page
    assert "<b>bisoprolol</b>" not in page
    assert "<b>bisoprolol</b> & co" in shown(page)


def test_the_page_needs_nothing_from_outside():
    page = render_report(make_report(CHINESE), title="合同", log_history=LOG, examples=True)
    outside = [link for link in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page) if link[0] != "#"]
    assert outside == ["data:,"]
    assert not set(re.findall(r"https?://[^\s\"<]+", page)) - {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert '<html lang="zh">' in page
    assert page == render_report(make_report(CHINESE), title="合同", log_history=LOG, examples=True)


def test_what_is_not_known_is_left_out():
    text = shown(render_report(make_report(ENGLISH, scored=False), title="x"))
    assert "calibration error" not in text
    assert "general text" not in text
    assert "Training" not in text
    empty = shown(render_report(None, title="x", log_history=LOG))
    assert "no term was scored" in empty
    assert "Loss by step" in empty


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize(("terms", "adapters"), [(ENGLISH, ("cardiology",)), (CHINESE, ("合同法", "a" * 60, "x"))])
def test_nothing_overflows_and_the_console_is_silent(tmp_path, width, terms, adapters):
    page = render_report(
        make_report(terms, adapters=adapters),
        title=adapters[0],
        log_history=LOG,
        best_step=200,
        steps=200,
        examples=True,
    )
    layout = lay_out(page, width=width, scratch=tmp_path)
    assert layout.overflowing == []
    assert layout.console == []
    assert layout.figures == 8
    assert all(height > 2000 for height in layout.heights.values())


def test_the_browser_sees_what_overflows_and_what_fails(tmp_path):
    page = render_report(make_report(ENGLISH), title="x").replace(
        "</main>", '<div style="width: 900px">wide</div><img src="data:nothing"><img src="nowhere/x.png"></main>'
    )
    layout = lay_out(page, width=400, scratch=tmp_path)
    assert "in-en page" in layout.overflowing
    assert any("Content Security Policy" in line for line in layout.console)
