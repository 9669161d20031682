from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, Glossary
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.evaluation import confidence
from t5refine_peft.evaluation.confidence import answers_by_temperature, damage_words, measure_confidence
from t5refine_peft.evaluation.evaluate import TermTest
from t5refine_peft.restoration.detection import find_words


@pytest.fixture
def rows(base, corpus, terms):
    return prepare_rows(corpus[:12], vocabulary=base.vocabulary, glossary=Glossary(terms))


@pytest.fixture
def collator(base):
    return DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig())


def test_damage_is_told_to_the_word(vocabulary, corpus):
    rng = np.random.default_rng(0)
    hit = total = 0
    for text in corpus:
        words = [word.gap for word in find_words(text, [], vocabulary)]
        noisy, places = damage_words(text, words, rng)
        assert len(noisy) == len(text)
        changed = [at for at, pair in enumerate(zip(text, noisy, strict=True)) if pair[0] != pair[1]]
        assert len(changed) == len(places)
        assert all(place.start <= at < place.end for at, place in zip(changed, places, strict=True))
        hit, total = hit + len(places), total + len(words)
    assert 0.05 < hit / total < 0.15


def test_confidence_is_a_card_that_json_can_hold(base, rows, collator):
    card = measure_confidence(base.model, base, {"validation": rows, "test": rows}, collator, limit=6)
    calibration, detection = card["calibration"], card["detection"]
    assert calibration["gaps"] == calibration["fitted_gaps"] >= 6
    assert sum(count for _, _, count in calibration["curve"]) == calibration["gaps"]
    assert 0 <= calibration["error_after"] <= 1
    assert detection["words"] > detection["damaged"] > 0
    assert math.isfinite(detection["threshold"])
    assert not base.model.training


def test_a_model_that_is_always_right_is_sure(base, rows, collator, monkeypatch):
    examples = TermTest.build(rows, collator, limit=6).examples

    def oracle(_model, _vocabulary, inputs, _counts, temperatures):
        by_input = {tuple(example.input_ids): example for example in examples}
        return [
            [(tuple(gap), torch.zeros(len(temperatures))) for gap in confidence.gap_tokens(by_input[tuple(ids)], base)]
            for ids in inputs
        ]

    monkeypatch.setattr(confidence, "decode_at_temperatures", oracle)
    logs, right = answers_by_temperature(base.model, base, examples, (1.0, 2.0))
    assert right.all()
    assert logs.shape == (len(right), 2)


def test_without_terms_random_spans_are_asked(base, corpus, collator):
    rows = prepare_rows(corpus[:4], vocabulary=base.vocabulary)
    card = measure_confidence(base.model, base, {"validation": rows, "test": rows}, collator, limit=3)
    assert card["calibration"]["gaps"] >= 3
