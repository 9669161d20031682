from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from t5refine_peft.modeling.packing import HeadMoves, pack, visible

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=20)


@given(LENGTHS)
def test_every_passage_stands_whole_in_the_same_row_of_inputs_and_labels(lengths):
    inputs, labels = pack(*zip(*lengths, strict=True))
    for rows, own in ((inputs, [a for a, _ in lengths]), (labels, [b for _, b in lengths])):
        assert rows.width % 8 == 0
        assert rows.width - max(own) < 8
        start = 0
        for passage, length in enumerate(own):
            places = rows.places[start : start + length]
            assert torch.equal(places, torch.arange(int(places[0]), int(places[0]) + length))
            assert int(places[0]) // rows.width == int(places[-1]) // rows.width
            assert (rows.passages.flatten()[places] == passage).all()
            assert torch.equal(rows.tokens.flatten()[places], torch.arange(start, start + length))
            start += length
        assert int((rows.passages >= 0).sum()) == start == len(rows.places)
    assert inputs.count == labels.count <= len(lengths)
    for row in range(inputs.count):
        assert set(inputs.passages[row].tolist()) - {-1} == set(labels.passages[row].tolist()) - {-1}


def test_short_passages_share_the_row_that_a_long_one_fills():
    inputs, labels = pack([64, 30, 34, 20, 44], [8, 2, 3, 4, 4])
    assert inputs.count == 3
    assert not inputs.is_full
    assert labels.width == 8
    full, _ = pack([16, 16], [8, 8])
    assert full.is_full
    assert visible(full, full, causal=False) is None


@given(LENGTHS)
def test_a_token_sees_its_own_passage_and_nothing_else(lengths):
    inputs, labels = pack(*zip(*lengths, strict=True))
    count = len(lengths)
    of_input = torch.repeat_interleave(torch.arange(count), torch.tensor([a for a, _ in lengths]))
    of_label = torch.repeat_interleave(torch.arange(count), torch.tensor([b for _, b in lengths]))
    for queries, keys, of_query, of_key, causal in (
        (inputs, inputs, of_input, of_input, False),
        (labels, labels, of_label, of_label, True),
        (labels, inputs, of_label, of_input, False),
    ):
        seen = visible(queries, keys, causal=causal)
        if seen is None:
            assert all(a % 8 == 0 for a, _ in lengths)
            continue
        expected = of_query[:, None] == of_key[None, :]
        if causal:
            expected &= torch.ones_like(expected).tril()
        row = queries.places // queries.width
        found = torch.zeros_like(expected)
        same_row = row[:, None] == (keys.places // keys.width)[None, :]
        at = seen[row[:, None], (queries.places % queries.width)[:, None], (keys.places % keys.width)[None, :]]
        found[same_row] = at[same_row]
        assert torch.equal(found, expected)
        assert int(seen.sum()) == int(expected.sum())  # empty places see and are seen by none


def test_moves_into_rows_and_back_are_inverse_and_so_are_their_gradients():
    inputs, _ = pack([5, 11, 3, 16], [1, 1, 1, 1])
    moves = HeadMoves(inputs, 3)
    torch.manual_seed(0)
    flat = torch.randn(35, 3 * 4, dtype=torch.float64, requires_grad=True)
    rows = moves.into_rows(flat)
    assert rows.shape == (inputs.count, 3, 16, 4)
    assert torch.equal(moves.out_of_rows(rows), flat)
    start = [0, 5, 16, 19]
    for passage, length in enumerate([5, 11, 3, 16]):
        row, columns = torch.nonzero(inputs.passages == passage, as_tuple=True)
        own = flat[start[passage] : start[passage] + length].view(length, 3, 4)
        assert torch.equal(rows[row, :, columns], own)
    weights = torch.randn(rows.shape, dtype=torch.float64)
    used = (inputs.passages >= 0)[:, None, :, None]
    assert torch.autograd.gradcheck(lambda x: moves.out_of_rows((moves.into_rows(x) * weights * used).sin()), flat)
    empty = torch.zeros_like(rows).requires_grad_()
    moves.out_of_rows(empty).sum().backward()
    assert torch.equal(empty.grad, used.expand_as(rows).to(torch.float64))
