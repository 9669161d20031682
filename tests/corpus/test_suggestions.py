from __future__ import annotations

import math
import random

import pytest

from t5refine_peft import Glossary, RefineError
from t5refine_peft.corpus import suggestions
from t5refine_peft.corpus.suggestions import Suggestion, suggest_terms

ENGLISH = ["the", "of", "and", "to", "in", "is", "was", "for", "with", "on", "by", "at", "from", "that", "this", "it"]
HAN = "的一是了在有和人这中大为上个国我以要他"


def english(rng: random.Random, terms: tuple[str, ...], count: int) -> list[str]:
    """Sentences of function words, each with a term somewhere."""
    return [
        f"{' '.join(rng.choices(ENGLISH, k=5))} {rng.choice(terms) if terms else rng.choice(ENGLISH)} "
        f"{' '.join(rng.choices(ENGLISH, k=5))}."
        for _ in range(count)
    ]


def chinese(rng: random.Random, terms: tuple[str, ...], count: int) -> list[str]:
    return [
        "".join(rng.choices(HAN, k=6)) + (rng.choice(terms) if terms else "") + "".join(rng.choices(HAN, k=6)) + "。"
        for _ in range(count)
    ]


def texts_of(suggestions: list[Suggestion]) -> list[str]:
    return [suggestion.text for suggestion in suggestions]


@pytest.mark.parametrize("with_background", [True, False])
def test_terms_come_before_the_words_around_them(vocabulary, with_background):
    rng = random.Random(0)
    corpus = english(rng, ("Furosemide", "heart failure", "loop diuretic"), 300)
    background = english(rng, (), 300) if with_background else None
    found = suggest_terms(corpus, vocabulary=vocabulary, background=background, limit=5)
    assert {"Furosemide", "heart failure", "loop diuretic"} <= set(texts_of(found))
    counts = {suggestion.text: suggestion.count for suggestion in found}
    assert counts["heart failure"] == sum("heart failure" in line for line in corpus)
    assert [s.keyness for s in found] == sorted((s.keyness for s in found), reverse=True)


def test_han_terms_are_whole(vocabulary):
    rng = random.Random(0)
    corpus = chinese(rng, ("心力衰竭", "撤销权"), 400)
    found = suggest_terms(corpus, vocabulary=vocabulary, background=chinese(rng, (), 400), limit=4)
    assert texts_of(found)[:2] == ["心力衰竭", "撤销权"] or texts_of(found)[:2] == ["撤销权", "心力衰竭"]
    assert not {"心力", "力衰竭", "撤销"} & set(texts_of(found))


def test_keyness_is_the_log_likelihood_ratio(vocabulary):
    """Against the formula of Dunning (1993) with all four cells' likelihoods written out."""
    corpus = ["alpha beta", "gamma; alpha", "alpha, delta"] * 4  # 12 of 24 words
    background = ["alpha; w"] * 3 + [" ".join(["v"] * 99)] * 100  # 3 of 9,906
    found = suggest_terms(corpus, vocabulary=vocabulary, background=background, min_count=12)

    def log_likelihood(count: int, size: int, rate: float) -> float:  # Poisson, as in corpus linguistics
        return count * math.log(rate * size) - rate * size - math.lgamma(count + 1)

    pooled = 15 / 9930
    expected = 2 * (
        log_likelihood(12, 24, 12 / 24)
        + log_likelihood(3, 9906, 3 / 9906)
        - log_likelihood(12, 24, pooled)
        - log_likelihood(3, 9906, pooled)
    )
    (alpha,) = [suggestion for suggestion in found if suggestion.text == "alpha"]
    assert alpha.keyness == pytest.approx(expected, abs=0.05)


def test_known_terms_and_rare_ones_are_not_proposed(vocabulary):
    corpus = english(random.Random(0), ("Furosemide", "heart failure"), 300) + ["bisoprolol."] * 4
    found = suggest_terms(corpus, vocabulary=vocabulary, glossary=Glossary(["furosemide"]), min_count=5)
    assert "heart failure" in texts_of(found)
    assert not {"Furosemide", "bisoprolol"} & set(texts_of(found))
    more = suggest_terms(corpus, vocabulary=vocabulary, min_count=4)
    assert {"Furosemide", "bisoprolol"} <= set(texts_of(more))


def test_spellings_in_capitals_count_together_and_punctuation_parts(vocabulary):
    corpus = ["Furosemide, heart", "furosemide; failure", "furosemide"] * 10
    found = {s.text: s.count for s in suggest_terms(corpus, vocabulary=vocabulary, min_count=10)}
    assert found["furosemide"] == 30
    assert "Furosemide" not in found
    assert not any(" " in text for text in found)


def test_limits_below_one_are_refused(vocabulary):
    with pytest.raises(RefineError, match="limit and min_count must be at least 1, found 0 and 5"):
        suggest_terms(["x"], vocabulary=vocabulary, limit=0)


def test_a_word_too_long_for_its_share_to_be_a_number_is_no_obstacle(vocabulary):
    word = "acgtgca" * 90
    corpus = [f"{before} {word} {after}" for before, after in zip("abcdefghij", "klmnopqrst", strict=True)]
    assert texts_of(suggest_terms(corpus, vocabulary=vocabulary)) == [word]


def test_what_is_frequent_outlives_any_number_of_rare_runs(vocabulary, monkeypatch):
    monkeypatch.setattr(suggestions, "_MOST_COUNTED", 200)
    corpus = [f"{n}a, furosemide; {n}b" for n in range(500) for _ in range(2)]
    (found,) = suggest_terms(corpus, vocabulary=vocabulary)
    assert (found.text, found.count) == ("furosemide", 1000)
