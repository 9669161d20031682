from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm

from t5refine_peft.modeling.adapted import adapted_linears, frozen_norm


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False), nn.Linear(6, 7, bias=False)


def layers(targets: list[str], dropout: float = 0.0) -> tuple[nn.Module, list[nn.Module]]:
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=targets, lora_dropout=dropout)
    model = get_peft_model(Three().double(), config).double()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return model, [getattr(model.base_model.model, name) for name in "abc"]


@pytest.mark.parametrize("targets", [["a", "b", "c"], ["a", "c"]])
@pytest.mark.parametrize("enabled", [True, False])
def test_outputs_and_gradients_are_pefts(targets: list[str], enabled: bool):
    model, linears = layers(targets)
    hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(4, width, dtype=torch.float64) for width in (5, 5, 7)]
    found = []
    for compute in (lambda: adapted_linears(hidden, *linears), lambda: [linear(hidden) for linear in linears]):
        model.zero_grad()
        hidden.grad = None
        if enabled:
            outputs = compute()
        else:
            with model.disable_adapter():
                outputs = compute()
        sum((output.sin() * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((outputs, hidden.grad.clone(), gradients))
    (ours, by_hidden, by_matrices), (theirs, their_hidden, their_matrices) = found
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert torch.allclose(by_hidden, their_hidden, atol=1e-12)
    assert by_matrices.keys() == their_matrices.keys()
    assert bool(by_matrices) == enabled
    assert all(torch.allclose(by_matrices[name], their_matrices[name], atol=1e-12) for name in by_matrices)


def test_the_adapters_dropout_is_for_the_adapter_alone_and_for_training_alone():
    model, linears = layers(["a", "b", "c"], dropout=0.5)
    hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    plain = [linear(hidden) for linear in model.eval() and linears]
    assert all(torch.allclose(a, b) for a, b in zip(adapted_linears(hidden, *linears), plain, strict=True))
    model.train()

    def same_draw(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(3)
        return adapted_linears(values, *linears)

    assert not torch.allclose(same_draw(hidden)[0], plain[0])
    assert torch.autograd.gradcheck(same_draw, hidden)
    mean = torch.stack([adapted_linears(hidden, *linears)[2] for _ in range(4000)]).mean(0)
    assert (mean - plain[2]).abs().max() < 0.5
    with model.disable_adapter():
        assert torch.allclose(adapted_linears(hidden, linears[0])[0], linears[0].base_layer(hidden))


def test_two_active_adapters_are_refused():
    model, linears = layers(["a", "b", "c"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["a", "b", "c"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"expected one active, found \['default', 'second'\]"):
        adapted_linears(torch.zeros(1, 6, dtype=torch.float64), *linears)


def test_the_norm_is_t5s():
    torch.manual_seed(0)
    norm = MT5LayerNorm(12)
    nn.init.normal_(norm.weight)
    norm.requires_grad_(False)
    hidden = torch.randn(5, 12, requires_grad=True)
    weight = torch.randn(5, 12)
    ours, theirs = (
        torch.autograd.grad((f(hidden) * weight).sum(), hidden)[0] for f in (lambda x: frozen_norm(x, norm), norm)
    )
    assert torch.allclose(frozen_norm(hidden, norm), norm(hidden), atol=1e-6)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: frozen_norm(x, norm.double()), hidden.detach().double().requires_grad_())
    assert frozen_norm(hidden.bfloat16(), norm.float()).dtype == torch.bfloat16  # fp32 norms beside quantised layers
