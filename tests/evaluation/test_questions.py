from __future__ import annotations

import json

import pytest

from t5refine_peft import Glossary, RefineError
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.evaluation.questions import QuestionSet

TEXTS = [
    "The patient takes furosemide, and furosemide helps.",
    "当事人依据撤销权请求法院撤销合同。",
    "Heart failure is treated with bisoprolol.",
]


@pytest.fixture
def rows(vocabulary):
    return prepare_rows(TEXTS, vocabulary=vocabulary, glossary=Glossary(["furosemide", "撤销权", "heart failure"]))


def filled(question) -> str:
    text = question.text
    for number, blank in enumerate(question.blanks):
        text = text.replace(f"<extra_id_{number}>", blank.truth)
    return text


def test_questions_filled_in_are_the_passages_and_the_same_every_time(rows, vocabulary):
    built = QuestionSet.build(rows, vocabulary, training_rows=rows, general_rows=rows)
    assert built == QuestionSet.build(rows, vocabulary, training_rows=rows, general_rows=rows)
    assert built != QuestionSet.build(rows, vocabulary, training_rows=rows, general_rows=rows, seed=1)
    passages = {vocabulary.decode(row["ids"]).strip() for row in rows}
    assert {filled(question) for question in built.questions} == passages
    kinds = [(question.part, question.blanks[0].kind) for question in built.questions]
    assert kinds == [("domain", "term")] * 3 + [("domain", "random")] * 3 + [("general", "random")] * 3
    assert all(question.text.count("<extra_id_") == len(question.blanks) for question in built.questions)


def test_what_is_known_of_a_gap(rows, vocabulary):
    two_places = rows.select([0])
    seen = set()
    for seed in range(20):
        (question,) = QuestionSet.build(two_places, vocabulary, training_rows=rows, seed=seed).questions[:1]
        seen.add((len(question.blanks), question.blanks[0].copy_left))
        assert all(blank.truth == "furosemide" and blank.training_count == 2 for blank in question.blanks)
        assert all(blank.masked_in_training for blank in question.blanks)
    assert seen == {(1, True), (2, False)}  # one place masked, and the other can be copied; or both
    unseen = QuestionSet.build(two_places, vocabulary, training_rows=rows.select([1])).questions[0].blanks[0]
    assert (unseen.training_count, unseen.masked_in_training) == (0, False)
    assert QuestionSet.build(two_places, vocabulary).questions[0].blanks[0].training_count is None


def test_random_words_belong_to_no_term(rows, vocabulary):
    for seed in range(30):
        for question in QuestionSet.build(rows, vocabulary, seed=seed).questions:
            if question.blanks[0].kind == "random":
                truth = question.blanks[0].truth.casefold()
                assert not any(part in truth for part in ("furosemide", "heart", "failure", "撤销权"))
                assert 1 <= len(truth.split()) <= 3


def test_saved_questions_are_loaded_as_they_were(rows, vocabulary, tmp_path):
    built = QuestionSet.build(rows, vocabulary, training_rows=rows)
    built.save(tmp_path / "test.jsonl")
    loaded = QuestionSet.load(tmp_path / "test.jsonl")
    assert loaded == built
    assert loaded.fingerprint == built.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]


def test_the_predecessors_format_is_read(tmp_path):
    rows = [
        {
            "inputs": "takes <extra_id_0> for<extra_id_1>.",
            "targets": "<extra_id_0>Furosemide<extra_id_1> oedema<extra_id_2>",
        },
        {"inputs": "依据<extra_id_0>请求", "targets": "<extra_id_0>撤销权"},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    loaded = QuestionSet.load(path, glossary=Glossary(["furosemide", "撤销"]))
    assert [(blank.truth, blank.kind) for _, blank in loaded.blanks] == [
        ("Furosemide", "term"), ("oedema", "random"), ("撤销权", "random"),
    ]  # fmt: skip
    assert [question.document for question in loaded.questions] == ["line 1", "line 2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"test.jsonl, line 2: Expecting property name .*; expected an object with 'inputs' and 'targets'"),
        ("[]", "line 2: found no text in 'inputs' and 'targets'"),
        ('{"inputs": "a <extra_id_0>"}', "line 2: found no text in 'inputs' and 'targets'"),
        ('{"inputs": "a", "targets": "<extra_id_0>b"}', "line 2: expected <extra_id_0> in the inputs"),
        (
            '{"inputs": "a <extra_id_0>", "targets": "<extra_id_0> "}',
            "line 2: expected text behind <extra_id_0>",
        ),
        ('{"inputs": "a <extra_id_0>", "targets": "<extra_id_0>b", "gaps": [1]}', "expected in 'gaps' an object for"),
        ('{"inputs": "a <extra_id_0>", "targets": "<extra_id_0>b", "part": "x"}', "expected 'domain' or 'general'"),
    ],
)
def test_a_broken_row_is_named(tmp_path, line, message):
    path = tmp_path / "test.jsonl"
    path.write_text('{"inputs": "a <extra_id_0>", "targets": "<extra_id_0>b"}\n' + line + "\n")
    with pytest.raises(RefineError, match=message):
        QuestionSet.load(path)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(RefineError, match=r"test.jsonl is empty"):
        QuestionSet.load(tmp_path / "test.jsonl")
