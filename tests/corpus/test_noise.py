from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft.corpus.noise import CONFUSIONS, damage


@given(text=texts, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_damage_is_seeded_and_keeps_spaces_in_number(text, share, seed):
    first, second = (damage(text, share=share, rng=np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    assert damage(text, share=0.0, rng=np.random.default_rng(seed)) == text

    def spaces(some: str) -> Counter[str]:
        return Counter(char for char in some if char.isspace())

    assert spaces(first) == spaces(text)


def test_a_third_each_is_dropped_swapped_and_confused():
    text = "l" * 30_000
    damaged = damage(text, share=0.3, rng=np.random.default_rng(0))
    assert len(text) - len(damaged) == pytest.approx(3_000, rel=0.1)
    confused = Counter(damaged)
    assert sum(confused[other] for other in CONFUSIONS["l"]) == pytest.approx(3_000, rel=0.1)
    swapped = damage("ab" * 30_000, share=0.3, rng=np.random.default_rng(0))
    assert swapped.count("bb") > 1_500


def test_confusions_are_other_characters_and_hold_both_ways_within_a_group():
    assert all(char not in others and all(others) for char, others in CONFUSIONS.items())
    for char, others in CONFUSIONS.items():
        assert all(char in CONFUSIONS[other] for other in others if len(other) == 1)
    assert {"1", "I"} <= set(CONFUSIONS["l"])
    assert "rn" in CONFUSIONS["m"]
    assert "末" in CONFUSIONS["未"]
