from __future__ import annotations

import json
import math
import re

import datasets
import pytest
import torch

from t5refine_peft import (
    AdapterConfig,
    CorruptionConfig,
    DataCollatorForTermCorruption,
    Glossary,
    RefineError,
    Restorer,
    evaluate,
)
from t5refine_peft.corpus.preparation import prepare_dataset, prepare_rows
from t5refine_peft.evaluation.evaluate import TermTest, answer_terms, score_terms
from t5refine_peft.evaluation.questions import QuestionSet
from t5refine_peft.modeling.lora import add_adapter, save_adapter


@pytest.fixture
def parts(base):
    collator = DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig())
    rows = prepare_rows(
        ["The patient takes furosemide, and furosemide helps.", "no term in this one", "当事人依据撤销权请求法院。"],
        vocabulary=base.vocabulary,
        glossary=Glossary(["furosemide", "撤销权"]),
    )
    return collator, TermTest.build(rows, collator, limit=10)


def test_one_term_a_passage_is_masked_wherever_it_stands(base, parts):
    _, test = parts
    assert [len(example.spans) for example in test.examples] == [2, 1]
    assert all("furosemide" not in base.vocabulary.decode(example.input_ids) for example in test.examples)


def test_scores_agree_with_a_reference(base, parts):
    collator, test = parts
    scores = score_terms(base.model, base, test, collator)
    loss, tokens, hits = 0.0, 0, 0
    for example in test.examples:
        ids, labels = torch.tensor(example.input_ids)[None].long(), torch.tensor(example.labels)[None].long()
        probabilities = torch.softmax(base.model(input_ids=ids, labels=labels).logits.double(), -1)[0]
        for at, is_term in enumerate(example.term_mask):
            if is_term:
                loss -= math.log(float(probabilities[at, labels[0, at]]))
                hits += int(labels[0, at] in probabilities[at].topk(5).indices)
                tokens += 1
    assert scores.gaps == 3
    assert scores.token_loss == pytest.approx(loss / tokens, rel=1e-5)
    assert scores.token_top5 == pytest.approx(hits / tokens)


def test_a_model_that_knows_the_answer_scores_one(base, parts, monkeypatch):
    """With the truth decoded, exact match is 1; with one wrong, it falls by a third."""
    from t5refine_peft.evaluation import evaluate as module
    from t5refine_peft.restoration.decoding import Answer

    collator, test = parts
    wrong = {"count": 0}

    def oracle(_model, _vocabulary, inputs, _gap_counts):
        by_input = {tuple(example.input_ids): example for example in test.examples}
        answers = []
        for ids in inputs:
            gaps = module.gap_tokens(by_input[tuple(ids)], base)
            answers.append([[Answer(tuple(gap), 1.0)] for gap in gaps])
        for _ in range(wrong["count"]):
            answers[0][0] = [Answer((50, 51), 1.0)]
        return answers

    monkeypatch.setattr(module, "decode_gaps", oracle)
    assert score_terms(base.model, base, test, collator).exact_match == 1.0
    wrong["count"] = 1
    assert score_terms(base.model, base, test, collator).exact_match == pytest.approx(2 / 3)


def test_without_terms_there_is_no_score(base, parts):
    assert score_terms(base.model, base, TermTest(()), parts[0]) is None


def test_a_tests_answers_stand_in_the_order_of_its_questions(base, parts):
    collator, test = parts
    answered = answer_terms(base.model, base, test, collator)
    assert [blank.truth for _, blank in test.questions.blanks] == ["furosemide", "furosemide", "撤销权"]
    assert len(answered.answers) == 3
    assert answered.scores == score_terms(base.model, base, test, collator)
    one_by_one = answer_terms(base.model, base, test, collator, batch_size=1)
    assert [best.text for (best,) in one_by_one.answers] == [best.text for (best,) in answered.answers]


@pytest.fixture
def splits(base, corpus, terms):
    return prepare_dataset(
        corpus, vocabulary=base.vocabulary, glossary=Glossary(terms), validation_share=0.2, test_share=0.3
    )


def perfect(questions: QuestionSet):
    """A system that knows every answer."""
    truths = {question.text: [blank.truth for blank in question.blanks] for question in questions.questions}

    def restore(texts):
        return [re.sub(r"<extra_id_(\d+)>", lambda match: truths[text][int(match[1])], text) for text in texts]  # noqa: B023

    return restore


def test_base_adapters_and_any_callable_are_asked_the_same(base, splits, tmp_path):
    torch.manual_seed(0)
    model = add_adapter(base, AdapterConfig(rank=4, dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    (tmp_path / "noise").mkdir()
    save_adapter(model, tmp_path / "noise")
    model.unload()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    questions = QuestionSet.build(splits["test"], base.vocabulary, training_rows=splits["train"])
    report = evaluate(
        splits, base=base, adapters=["noise"], adapters_dir=tmp_path, systems={"oracle": perfect(questions)}
    )
    assert before.keys() == base.model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert report.questions == questions
    assert [scores.system for scores in report.scores] == ["base", "noise", "oracle"]
    assert [comparison.against for comparison in report.comparisons] == ["base", "base"]
    _, noise, oracle = report.scores
    assert (oracle.exact_match.value, oracle.well_formed, oracle.character_error_rate) == (1.0, 1.0, 0.0)
    assert oracle.random_exact_match.value == 1.0
    assert report.comparisons[1].errors_removed == 1.0
    assert report.comparisons[1].p_value < 0.05
    assert noise.well_formed == 1.0
    restorer = Restorer(base, adapters_dir=tmp_path)
    restored = restorer.restore(questions.questions[0].text, adapter="noise", num_candidates=5)
    assert [filling.score for filling in report.answers["noise"][0]] == pytest.approx(
        [candidate.score for candidate in restored.gaps[0].candidates], rel=1e-4
    )


def test_a_prepared_directory_and_a_file_ask_the_same_as_the_dataset(base, splits, tmp_path):
    splits.save_to_disk(tmp_path / "prepared")
    questions = QuestionSet.build(splits["test"], base.vocabulary, training_rows=splits["train"])
    questions.save(tmp_path / "test.jsonl")
    systems = {"oracle": perfect(questions)}
    found = [
        evaluate(data, base=base, systems=systems, num_candidates=1).to_dict()
        for data in (splits, tmp_path / "prepared", tmp_path / "test.jsonl", questions)
    ]
    assert found[0] == found[1] == found[2] == found[3]
    assert evaluate(tmp_path / "test.jsonl", systems=systems).scores[0].exact_match.value == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": None}, "nothing to evaluate: give a base"),
        ({"base": None, "adapters": ["x"], "systems": {"y": list}}, "nothing to evaluate: give a base"),
        ({"adapters": ["none"]}, "no adapter 'none'"),
        ({"systems": {"base": list}}, "two systems are named 'base'"),
        ({"data": "folder"}, "folder is no prepared dataset"),
        ({"data": "none.jsonl"}, "none.jsonl can't be read"),
        ({"data": datasets.DatasetDict()}, "no split 'test'"),
        ({"data": QuestionSet(())}, "holds no question"),
    ],
)
def test_bad_input_is_one_sentence(base, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    row = {"inputs": "a <extra_id_0>", "targets": "<extra_id_0> b"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    options = {"data": "test.jsonl", "base": base, **change}
    with pytest.raises(RefineError, match=message):
        evaluate(options.pop("data"), **options)


def test_a_prepared_dataset_needs_its_base(splits):
    with pytest.raises(RefineError, match="give the base that it was prepared for"):
        evaluate(splits, systems={"x": list})
