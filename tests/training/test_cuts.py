from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from t5refine_peft.training.cuts import cut_batch

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=12)


def batch(lengths: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    mask = torch.zeros(len(lengths), max(a for a, _ in lengths), dtype=torch.int64)
    labels = torch.full((len(lengths), max(b for _, b in lengths)), -100)
    for row, (inputs, outputs) in enumerate(lengths):
        mask[row, :inputs] = 1
        labels[row, :outputs] = 7
    return {"number": torch.arange(len(lengths)), "attention_mask": mask, "labels": labels}


@given(LENGTHS, st.integers(1, 120))
def test_every_passage_is_in_one_micro_batch_within_the_budget(lengths, budget):
    parts = cut_batch(batch(lengths), max_tokens=budget)
    numbers = [part["number"].tolist() for part in parts]
    assert sorted(number for members in numbers for number in members) == list(range(len(lengths)))
    for part, members in zip(parts, numbers, strict=True):
        tokens = int(part["attention_mask"].sum()) + int((part["labels"] != -100).sum())
        assert tokens == sum(sum(lengths[member]) for member in members)
        assert tokens <= budget or len(members) == 1


def test_without_a_budget_the_batch_is_whole():
    inputs = batch([(3, 2), (5, 1)])
    assert cut_batch(inputs, max_tokens=None) == [inputs]
    assert cut_batch(inputs, max_tokens=11) == [inputs]
