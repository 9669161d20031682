from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import texts

from t5refine_peft import Restorer
from t5refine_peft.restoration.assembly import put_together
from t5refine_peft.restoration.decoding import Answer
from t5refine_peft.restoration.detection import (
    damaged_gaps,
    find_words,
    fit_threshold,
    make_probes,
    precision_recall,
    score_probes,
)
from t5refine_peft.restoration.encoding import encode_batch
from t5refine_peft.restoration.gaps import Gap, find_gaps


@given(text=texts)
def test_words_lie_apart_outside_what_is_given_and_are_masked_once(vocabulary, text):
    given_gaps = find_gaps(text)
    words = find_words(text, given_gaps, vocabulary)
    places = sorted([*given_gaps, *(word.gap for word in words)], key=lambda gap: (gap.start, gap.end))
    assert all(one.end <= other.start for one, other in itertools.pairwise(places))
    for word in words:
        shown = text[word.gap.start : word.gap.end]
        assert any(char.isalnum() for char in shown)
        assert shown == shown.strip()
    masked = [n for probe in make_probes(text, given_gaps, words, vocabulary) for n in probe.words if n is not None]
    assert sorted(masked) == list(range(len(words)))


def test_a_word_that_holds_an_empty_gap_and_half_characters_are_no_words(vocabulary):
    assert [word.gap for word in find_words("the heart\udce9", [Gap(6, 6)], vocabulary)] == [Gap(0, 3)]
    assert [word.gap for word in find_words("the heart", [Gap(4, 4)], vocabulary)] == [Gap(0, 3), Gap(4, 9)]


def test_a_words_score_is_its_least_probable_token_given_all_else(base):
    text = "the patient takes furosemide ___ for the heart"
    given_gaps = find_gaps(text)
    words = find_words(text, given_gaps, base.vocabulary)
    probes = make_probes(text, given_gaps, words, base.vocabulary)
    encoded = encode_batch(base.model, [probe.window.input_ids for probe in probes], pad_id=0)
    judged = score_probes(base.model, base.vocabulary, encoded, probes, [words] * len(probes), lambda _: None)
    for probe, found in zip(probes, judged, strict=True):
        sequence, places = [0], {}
        for number, word in enumerate(probe.words):
            sequence.append(base.vocabulary.sentinel_ids[number])
            if word is not None:
                places[word] = range(len(sequence), len(sequence) + len(words[word].ids))
                sequence += words[word].ids
        logits = base.model(
            input_ids=torch.from_numpy(probe.window.input_ids)[None], decoder_input_ids=torch.tensor([sequence[:-1]])
        ).logits[0]
        logs = torch.log_softmax(logits.double(), -1)
        for word, place in places.items():
            assert found[word] == pytest.approx(min(float(logs[at - 1, sequence[at]]) for at in place), rel=1e-4)


def test_words_below_the_threshold_are_gaps_and_those_that_touch_are_one(vocabulary):
    text = "合同生效 the heart"
    words = find_words(text, [], vocabulary)
    scores = [-9.0 if word.gap.end <= 4 else -1.0 for word in words]
    assert damaged_gaps(words, scores, threshold=-5.0) == [Gap(0, 4, found=True)]
    assert damaged_gaps(words, scores, threshold=-10.0) == []
    between = [Gap(0, 2, found=True), Gap(2, 4, found=True)]
    assert damaged_gaps(words, scores, threshold=-5.0, given=[Gap(2, 2)]) == between


def test_damage_that_is_left_open_is_told():
    answers = [[Answer((1,), 0.3)], [Answer((2,), 0.3)]]
    gaps = [Gap(4, 9, found=True), Gap(10, 15, found=True)]
    said = {1: " heart", 2: " pulse"}
    restored = put_together("the heaxt pulse", gaps, answers, decode=lambda ids: said[ids[0]], min_score=0.5)
    assert restored.text == "the heaxt pulse"
    assert [(gap.text, gap.found, gap.open) for gap in restored.gaps] == [("heaxt", True, True)]


def test_the_threshold_has_the_best_f_half():
    rng = np.random.default_rng(0)
    damaged = rng.random(400) < 0.1
    scores = rng.normal(size=400) - 2.5 * damaged

    def quality(threshold: float) -> float:
        precision, recall = precision_recall(scores, damaged, threshold)
        return 1.25 * precision * recall / max(1e-12, 0.25 * precision + recall)

    assert quality(fit_threshold(scores, damaged)) == max(quality(score + 1e-9) for score in scores)
    assert precision_recall(np.array([-3.0, -1.0, -4.0]), np.array([True, True, False]), -2.0) == (0.5, 0.5)


def test_found_damage_is_restored_and_told_apart_from_what_was_given(base):
    restorer = Restorer(base, adapters_dir="none")
    text = "the patient ___ takes furosemide"
    everything = restorer.restore(text, detect=True, detect_threshold=0.1, max_gap_tokens=3)
    assert [gap.found for gap in everything.gaps].count(False) == 1
    assert sum(gap.found for gap in everything.gaps) >= 3
    nothing = restorer.restore(text, detect=True, detect_threshold=-1000.0, max_gap_tokens=3)
    assert nothing == restorer.restore(text, max_gap_tokens=3)


def test_what_the_model_would_write_itself_is_no_damage():
    said = {1: " heart", 2: " pulse"}
    gaps = [Gap(4, 9, found=True), Gap(10, 15, found=True), Gap(16, 21)]
    answers = [[Answer((1,), 0.9)], [Answer((2,), 0.8)], [Answer((1,), 0.7)]]
    restored = put_together("the heart pu1se heart", gaps, answers, decode=lambda ids: said[ids[0]])
    assert restored.text == "the heart pulse heart"
    assert [(gap.start, gap.text, gap.found) for gap in restored.gaps] == [(10, "pulse", True), (16, "heart", False)]
    assert restored.source_lengths == (5, 5)


@pytest.mark.parametrize("min_score", [0.0, 0.5])
def test_a_gap_whose_score_is_no_number_is_left_open(min_score):
    gaps, answers = [Gap(2, 5)], [[Answer((0,), math.nan)]]
    restored = put_together("a ___ b", gaps, answers, decode=lambda _: " heart", min_score=min_score)
    assert restored.text == "a ___ b"
    assert restored.gaps[0].open
