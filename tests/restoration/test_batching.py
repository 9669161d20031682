from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5refine_peft import RefineError
from t5refine_peft.restoration.batching import make_batches
from t5refine_peft.restoration.windows import Window

windows_of_any_size = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 5), st.sampled_from("ab")), max_size=40)


@given(sizes=windows_of_any_size, budget=st.integers(1, 300))
def test_batches_hold_each_window_once_within_the_budget_and_by_kind(sizes, budget):
    windows = [Window(np.zeros(length), range(gaps), range(gaps)) for length, gaps, _ in sizes]
    batches = make_batches(windows, batch_tokens=budget, kinds=[kind for *_, kind in sizes])
    assert sorted(number for batch in batches for number in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len({sizes[number][2] for number in batch}) == 1
        padded = len(batch) * max(sizes[number][0] for number in batch)
        assert padded <= budget or len(batch) == 1


def test_windows_of_about_one_cost_stand_together():
    sizes = [(10, 1), (100, 3), (12, 1), (98, 3), (11, 2)]
    windows = [Window(np.zeros(length), range(gaps), range(gaps)) for length, gaps in sizes]
    assert make_batches(windows, batch_tokens=200) == [[0, 2, 4], [3, 1]]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(RefineError, match="batch_tokens must be at least 1, found 0"):
        make_batches([], batch_tokens=0)
