from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F

from t5refine_peft import RefineError, frozen_head_cross_entropy
from t5refine_peft.modeling import loss
from t5refine_peft.modeling.layers import QuantizedLinear
from t5refine_peft.modeling.loss import head_inputs, label_scores
from t5refine_peft.modeling.matrices import quantize


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that even a small head is gone over in several tiles."""
    monkeypatch.setattr(loss, "TILE_BYTES_CPU", 20_000)


def problem(tokens: int, rows: int, width: int, dtype: torch.dtype = torch.float32):
    torch.manual_seed(tokens + rows)
    hidden = torch.randn(tokens, width, dtype=dtype).requires_grad_()
    head = (torch.randn(rows, width) * 3 * width**-0.5).to(dtype)
    labels = torch.randint(0, rows, (tokens,))
    return hidden, head, labels


def with_gradient(value: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (gradient,) = torch.autograd.grad(value, hidden)
    return value.detach(), gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("tokens", "rows", "width"), [(1, 7, 5), (9, 501, 32), (40, 1031, 24), (3, 1, 8)])
def test_loss_and_gradient_are_those_of_the_logits(tokens, rows, width, smoothing):
    hidden, head, labels = problem(tokens, rows, width)
    labels[: tokens // 3] = -100
    found = with_gradient(frozen_head_cross_entropy(hidden, head, labels, label_smoothing=smoothing), hidden)
    exact = hidden.double() @ head.double().T
    wanted = with_gradient(F.cross_entropy(exact, labels, label_smoothing=smoothing), hidden)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5, abs=1e-6)
    assert torch.allclose(found[1], wanted[1], rtol=1e-4, atol=1e-7)
    assert not found[1][: tokens // 3].any()


def test_every_row_of_the_head_may_be_the_label():
    """Labels on both sides of every tile's edge, each against the whole softmax."""
    hidden, head, _ = problem(1031, 1031, 24)
    labels = torch.arange(1031)
    with torch.no_grad():
        found = frozen_head_cross_entropy(hidden, head, labels, num_items_in_batch=1)
        wanted = F.cross_entropy(hidden @ head.T, labels, reduction="sum")
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck_in_double_precision(smoothing):
    hidden, head, labels = problem(5, 203, 6, torch.float64)
    labels[1] = -100
    assert torch.autograd.gradcheck(
        lambda states: frozen_head_cross_entropy(states, head, labels, label_smoothing=smoothing), hidden
    )


@pytest.mark.parametrize("storage", ["int8", "nf4"])
@pytest.mark.parametrize("rows", [331, 1024])
def test_a_quantised_head_gives_what_its_numbers_give(storage, rows):
    hidden, head, labels = problem(11, rows, 96)
    matrix = quantize(head, storage, torch.device("cpu"))
    quantised = QuantizedLinear(matrix, dtype=torch.float32)
    exact = matrix.gather(torch.arange(rows), torch.float64)
    found = with_gradient(frozen_head_cross_entropy(hidden, quantised, labels), hidden)
    wanted = with_gradient(F.cross_entropy(hidden.double() @ exact.T, labels), hidden)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5)
    assert torch.allclose(found[1], wanted[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("storage", [None, "int8", "nf4"])
def test_bf16_is_within_a_percent_and_its_gradient_points_the_same_way(storage):
    hidden, head, labels = problem(64, 2003, 128)
    matrix = quantize(head, storage, torch.device("cpu")) if storage else None
    exact_head = matrix.gather(torch.arange(2003), torch.float64) if matrix else head.double()
    wanted = with_gradient(F.cross_entropy(hidden.double() @ exact_head.T, labels), hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = QuantizedLinear(matrix, dtype=torch.bfloat16) if matrix else head.bfloat16()
        found = with_gradient(frozen_head_cross_entropy(hidden, given, labels), hidden)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=0.01)
    assert F.cosine_similarity(found[1].flatten(), wanted[1].flatten(), dim=0) >= 0.999


def test_the_gradient_stays_right_in_bf16_where_the_model_is_sure():
    """Softmax rounds to 1 there: with the label's own weight in the sum, the small rest would be lost."""
    head = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(8)
    hidden = (head[:8].float() * 0.2).bfloat16().requires_grad_()
    wanted = with_gradient(F.cross_entropy(hidden.double() @ head.double().T, labels), hidden)
    assert 1e-4 < float(wanted[0]) < 0.1
    found = with_gradient(frozen_head_cross_entropy(hidden, head, labels), hidden)
    assert F.cosine_similarity(found[1].double().flatten(), wanted[1].double().flatten(), dim=0) >= 0.999


def test_only_ignored_labels_give_zero_and_no_gradient():
    hidden, head, labels = problem(4, 50, 8)
    found = with_gradient(frozen_head_cross_entropy(hidden, head, torch.full_like(labels, -100)), hidden)
    assert float(found[0]) == 0
    assert not found[1].any()


def test_the_divisor_is_that_of_the_whole_batch():
    hidden, head, labels = problem(12, 90, 8)
    whole = frozen_head_cross_entropy(hidden, head, labels)
    parts = [
        frozen_head_cross_entropy(hidden[part], head, labels[part], num_items_in_batch=torch.tensor(12))
        for part in (slice(0, 5), slice(5, 12))
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)
    (gradient,) = torch.autograd.grad(sum(parts) * 3, hidden)
    assert torch.allclose(gradient, 3 * torch.autograd.grad(whole, hidden)[0], atol=1e-6)


def test_scores_are_those_of_the_log_softmax():
    hidden, head, labels = problem(30, 777, 16)
    labels[4] = -100
    shaped = label_scores(hidden.view(5, 6, 16), head, labels.view(5, 6), top=5)
    exact = torch.log_softmax(hidden.double() @ head.double().T, -1)
    counted = labels != -100
    chosen = exact.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    assert shaped.log_probabilities.shape == (5, 6)
    assert torch.allclose(shaped.log_probabilities.flatten()[counted].double(), chosen[counted], atol=1e-5)
    assert torch.equal(shaped.predictions.view(30, 5)[counted], exact.topk(5).indices[counted])
    assert shaped.log_probabilities.flatten()[4] == 0
    assert (shaped.predictions.view(30, 5)[4] == -1).all()
    assert torch.equal(label_scores(hidden, head, labels.abs()).predictions.squeeze(1), exact.argmax(1))


def test_wrong_shapes_and_labels_are_told():
    hidden, head, labels = problem(4, 50, 8)
    with pytest.raises(RefineError, match=r"expected hidden states of \(4, 9\) .* found \(4, 8\)"):
        frozen_head_cross_entropy(hidden, torch.zeros(50, 9), labels)
    with pytest.raises(RefineError, match="a label is 50: expected -100 or a row of the head, 0 to 49"):
        frozen_head_cross_entropy(hidden, head, labels.index_fill(0, torch.tensor([2]), 50))
    with pytest.raises(RefineError, match="a label is -1"):
        label_scores(hidden, head, labels.index_fill(0, torch.tensor([2]), -1))
    with pytest.raises(RefineError, match="the head has a bias"):
        frozen_head_cross_entropy(hidden, nn.Linear(8, 50), labels)
    with pytest.raises(RefineError, match="label_smoothing must lie between 0 and 1, found 2"):
        frozen_head_cross_entropy(hidden, head, labels, label_smoothing=2)


@pytest.mark.parametrize(("rows", "width"), [(16_384, 256), (1024, 2048)])
def test_the_transient_is_small_for_4096_tokens(monkeypatch, rows, width):
    """At most 100 MiB beyond gradient and accumulator, with a GPU's tile too. Logits in fp32 alone would be 256 MiB."""
    monkeypatch.setattr(loss, "TILE_BYTES_CPU", loss.TILE_BYTES_GPU)
    hidden, head, labels = problem(4096, rows, width, torch.bfloat16)
    labels[::16] = -100
    with MemTracker() as tracker:
        frozen_head_cross_entropy(hidden, head, labels)
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    kept = 4096 * width * (2 + 4)
    assert kept * 0.9 < peak <= kept + (100 << 20)


def test_the_head_computes_again_afterwards_even_when_the_model_fails(base):
    head = base.model.get_output_embeddings()
    ids = torch.arange(5, 12)[None]
    before = base.model(input_ids=ids, decoder_input_ids=ids).logits
    hidden = head_inputs(base.model, head, input_ids=ids, decoder_input_ids=ids)
    assert torch.equal(head(hidden), before)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        head_inputs(base.model, head, input_ids=ids)
    assert torch.equal(base.model(input_ids=ids, decoder_input_ids=ids).logits, before)
