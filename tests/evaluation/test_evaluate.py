from __future__ import annotations

import math

import pytest
import torch

from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, Glossary
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.evaluation.evaluate import TermTest, score_terms


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
    from t5refine_peft.evaluation import evaluate
    from t5refine_peft.restoration.decoding import Answer

    collator, test = parts
    wrong = {"count": 0}

    def oracle(_model, _vocabulary, inputs, _gap_counts):
        by_input = {tuple(example.input_ids): example for example in test.examples}
        answers = []
        for ids in inputs:
            gaps = evaluate.gap_tokens(by_input[tuple(ids)], base)
            answers.append([[Answer(tuple(gap), 1.0)] for gap in gaps])
        for _ in range(wrong["count"]):
            answers[0][0] = [Answer((50, 51), 1.0)]
        return answers

    monkeypatch.setattr(evaluate, "decode_gaps", oracle)
    assert score_terms(base.model, base, test, collator).exact_match == 1.0
    wrong["count"] = 1
    assert score_terms(base.model, base, test, collator).exact_match == pytest.approx(2 / 3)


def test_without_terms_there_is_no_score(base, parts):
    assert score_terms(base.model, base, TermTest(()), parts[0]) is None
