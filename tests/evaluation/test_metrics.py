from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from t5refine_peft.evaluation import metrics

GAPS = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("truth", "answer", "same"),
    [
        ("Loop diuretic", " loop  DIURETIC ", True),
        ("ＡＣＥ抑制剂", "ace抑制剂", True),
        ("Straße", "STRASSE", True),
        ("café", "cafe\u0301", True),
        ("stent", "stents", False),
        ("cafe", "café", False),
        ("stent", "", False),
    ],
)
def test_exact_match_is_after_normalisation(truth, answer, same):
    assert metrics.is_exact(truth, answer) is same


def test_micro_counts_gaps_and_macro_counts_terms():
    right, terms = [True, True, True, False], ["heart", "heart", "heart", "stent"]
    assert metrics.micro(right) == 0.75
    assert metrics.macro(right, terms) == 0.5
    assert metrics.micro([]) == metrics.macro([], []) == 0.0


def edit_distance(one: str, other: str) -> int:
    """Wagner and Fischer's table, written out."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        previous, row[0] = row[0], i
        for j, right in enumerate(other, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


@given(st.lists(st.tuples(st.text("abc心 ", min_size=1), st.text("abc心 ")), min_size=1, max_size=6))
def test_character_error_rate_agrees_with_the_table(pairs):
    truths, answers = zip(*pairs, strict=True)
    characters = sum(len(" ".join(truth.split())) for truth in truths)
    edits = sum(edit_distance(" ".join(t.split()), " ".join(a.split())) for t, a in pairs)
    assert metrics.character_error_rate(truths, answers) == pytest.approx(edits / characters if characters else 0.0)


def test_character_error_rate_by_hand():
    # kitten -> sitting: 3 edits over 6 characters; 心衰 -> 心力衰竭: 2 over 2; the third is right: 0 over 5
    assert metrics.character_error_rate(["kitten", "心衰", "Aorta"], ["sitting", "心力衰竭", "aorta"]) == 5 / 13


def chrf_reference(truths: list[str], answers: list[str], *, order: int = 6, beta: float = 2.0) -> float:
    """chrF from its definition: n-gram statistics summed over the corpus, spaces left out."""
    scores = []
    for n in range(1, order + 1):
        hits = said = true = 0
        for truth, answer in zip(truths, answers, strict=True):
            grams = [
                Counter(text[i : i + n] for i in range(len(text) - n + 1))
                for text in (truth.replace(" ", ""), answer.replace(" ", ""))
            ]
            hits += sum((grams[0] & grams[1]).values())
            true, said = true + sum(grams[0].values()), said + sum(grams[1].values())
        if true and said:
            scores.append((hits / said, hits / true))
    precision, recall = np.mean(scores, axis=0)
    return float(100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def test_chrf_agrees_with_its_definition():
    truths = ["furosemide", "loop diuretic", "heart failure", "撤销权的行使期间"]
    answers = ["torasemide", "loop diuretics", "failure", "撤销权行使的期间"]
    assert metrics.chrf(truths, answers) == pytest.approx(chrf_reference(truths, answers), rel=1e-6)
    assert metrics.chrf(truths, [truth.upper() for truth in truths]) == pytest.approx(100)
    assert metrics.chrf(["aaa"], ["bbb"]) == 0


def test_the_interval_agrees_with_a_bootstrap_written_out():
    rng = np.random.default_rng(3)
    documents = rng.integers(0, 60, size=400).tolist()
    easy = rng.random(60)
    right = [bool(rng.random() < easy[document]) for document in documents]
    found = metrics.interval(right, documents, resamples=4000)
    by_document = [[hit for hit, own in zip(right, documents, strict=True) if own == d] for d in set(documents)]
    draws = []
    for _ in range(4000):
        drawn = [by_document[i] for i in rng.integers(0, len(by_document), size=len(by_document))]
        draws.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.value == pytest.approx(sum(right) / 400)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    independent = stats.binomtest(sum(right), 400).proportion_ci()
    assert found.high - found.low > independent.high - independent.low  # gaps of one document go together


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        right = (rng.random(120) < 0.3).tolist()
        found = metrics.interval(right, range(120), resamples=500, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_where_none_is_right_the_interval_is_the_exact_one():
    found = metrics.interval([False] * 30, range(30))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert metrics.interval([], []).count == 0


def exact_p_value(differences: list[int]) -> float:
    """All 2^n ways to swap the two systems within documents, counted."""
    observed = sum(differences)
    swapped = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    above = np.mean([total >= observed for total in swapped])
    below = np.mean([total <= observed for total in swapped])
    return float(min(1.0, 2 * min(above, below)))


@given(GAPS)
def test_the_paired_test_agrees_with_counting_all_swaps(gaps):
    first, second, documents = map(list, zip(*gaps, strict=True))
    difference, p_value = metrics.paired_difference(first, second, documents)
    by_document = [
        sum(int(a) - int(b) for a, b, own in gaps if own == document) for document in dict.fromkeys(documents)
    ]
    assert difference.value == pytest.approx(np.mean(first) - np.mean(second))
    expected = exact_p_value(by_document) if len(by_document) > 1 else 1.0
    assert p_value == pytest.approx(expected)


def test_the_paired_test_agrees_with_the_sign_test_of_single_gaps():
    first, second = [True] * 14 + [False] * 16, [False] * 12 + [True] * 4 + [False] * 14
    # 12 gaps only the first has, 2 only the second: McNemar's exact test
    _, p_value = metrics.paired_difference(first, second, range(30), resamples=200_000)
    assert p_value == pytest.approx(stats.binomtest(2, 14).pvalue, rel=0.1)


def test_errors_removed_by_hand():
    assert metrics.errors_removed([True, True, True, False], [True, False, False, False]) == pytest.approx(2 / 3)
    assert metrics.errors_removed([False, False], [True, False]) == pytest.approx(-1.0)
    assert metrics.errors_removed([True], [True]) == 0.0


def test_calibration_by_hand():
    bins = metrics.calibration([0.05, 0.15, 0.95, 0.95, 1.0], [False, False, True, True, False])
    assert [(part.count, part.accuracy) for part in bins] == [(1, 0.0), (1, 0.0), (3, pytest.approx(2 / 3))]
    # |0 - .05| / 5 + |0 - .15| / 5 + 3 / 5 * |2/3 - 2.9/3|
    assert metrics.calibration_error(bins) == pytest.approx(0.05 / 5 + 0.15 / 5 + 0.3 / 5 * 3)
    assert metrics.calibration([], []) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_calibration_error_agrees_with_a_histogram(scored):
    scores, right = map(list, zip(*scored, strict=True))
    places = [min(9, math.floor(score * 10)) for score in scores]
    weights = [np.bincount(places, weights=values, minlength=10) for values in (scores, right)]
    expected = np.abs(weights[0] - weights[1]).sum() / len(scores)
    assert metrics.calibration_error(metrics.calibration(scores, right)) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_accuracy_at_full_coverage_is_accuracy(scored):
    scores, right = map(list, zip(*scored, strict=True))
    curve = metrics.accuracy_at_coverage(scores, right)
    assert curve[-1] == (1.0, pytest.approx(np.mean(right)))
    kept = round(curve[0][0] * len(right))
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:kept]
    assert curve[0][1] == pytest.approx(np.mean([right[i] for i in best]))
