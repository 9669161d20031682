from __future__ import annotations

import pytest

from t5refine_peft import RefineError, Restoration
from t5refine_peft.evaluation.questions import Blank, Question, QuestionSet
from t5refine_peft.evaluation.systems import ask, read_answer
from t5refine_peft.restoration.restorer import Candidate, RestoredGap


def question(text: str, *truths: str) -> Question:
    blanks = tuple(Blank(truth=truth, kind="term", copy_left=False) for truth in truths)
    return Question(text=text, blanks=blanks, document="1")


ONE = question("He takes <extra_id_0> for (oedema).", "furosemide")
TWO = question("<extra_id_0>请求撤销<extra_id_1>", "当事人", "合同")


@pytest.mark.parametrize(
    ("asked", "given", "fillings"),
    [
        (ONE, "He takes furosemide for (oedema).", ["furosemide"]),
        (ONE, " He takes a loop\ndiuretic  for (oedema).\n", ["a loop\ndiuretic"]),
        (TWO, "买受人请求撤销合同", ["买受人", "合同"]),
        (ONE, "He took furosemide for (oedema).", None),
        (ONE, "He takes for (oedema).", None),
        (ONE, "He takes <extra_id_0> for (oedema).", None),
        (ONE, "<extra_id_0> furosemide", None),
        (TWO, "请求撤销合同", None),
    ],
)
def test_a_filling_is_read_off_a_restored_text(asked, given, fillings):
    found = read_answer(asked, given, name="x")
    assert found == ([()] * len(asked.blanks) if fillings is None else found)
    assert [gap[0].text for gap in found if gap] == (fillings or [])


def test_a_restoration_brings_candidates_and_scores():
    candidates = (Candidate(" furosemide", 0.75), Candidate(" torasemide", 0.25))
    given = Restoration("He takes furosemide for (oedema).", (RestoredGap(8, 19, " furosemide", 0.75, candidates),))
    (found,) = read_answer(ONE, given, name="x")
    assert [(filling.text, filling.score) for filling in found] == [("furosemide", 0.75), ("torasemide", 0.25)]
    assert read_answer(TWO, given, name="x") == [(), ()]


def test_systems_are_asked_in_batches_and_in_order():
    asked = []

    def system(texts):
        asked.append(len(texts))
        return [text.replace("<extra_id_0>", str(number)) for number, text in enumerate(texts)]

    questions = QuestionSet(tuple(question(f"a{n} <extra_id_0>", "x") for n in range(5)))
    answers = ask(questions, system, name="x", batch_size=2)
    assert asked == [2, 2, 1]
    assert [best.text for (best,) in answers] == ["0", "1", "0", "1", "0"]


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (lambda texts: texts[1:], "the system 'x' was asked 1 texts and gave back 0"),
        (lambda _: [None], "the system 'x' gave NoneType: expected a restored text or a Restoration"),
    ],
)
def test_a_system_that_gives_something_else_is_named(system, message):
    with pytest.raises(RefineError, match=message):
        ask(QuestionSet((ONE,)), system, name="x")
