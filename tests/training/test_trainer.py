from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from t5refine_peft import (
    AdapterConfig,
    CorruptionConfig,
    DataCollatorForTermCorruption,
    Glossary,
    MemoryPlan,
    Quantization,
    RefineError,
    TrainingConfig,
    load_base,
    plan_memory,
    train_adapter,
)
from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.corpus.preparation import prepare_dataset
from t5refine_peft.modeling.base import save_quantized
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.training.order import LengthGroupedSampler
from t5refine_peft.training.planning import plan_training
from t5refine_peft.training.train import _trainer
from t5refine_peft.training.trainer import _clearing, token_loss


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.gradients = {n: p.grad.clone() for n, p in kwargs["model"].named_parameters() if p.grad is not None}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.loss = logs["loss"]


def one_step(
    tiny_base: Path, corpus, terms, run: Path, micro_batch: int | None, plan: MemoryPlan | None = None
) -> KeepGradients:
    base = load_base(tiny_base, device="cpu", precision="float32")
    splits = prepare_dataset(corpus, vocabulary=base.vocabulary, glossary=Glossary(terms))
    splits["train"] = splits["train"].select(range(8))
    config = TrainingConfig(
        adapter=AdapterConfig(rank=4, dropout=0.0), batch=8, micro_batch=micro_batch, max_steps=1, max_gradient_norm=1e9
    )
    torch.manual_seed(0)
    kept = KeepGradients()
    collator = DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig(random_only=0.0))
    _trainer(add_adapter(base, config.adapter), base, splits, collator, config, run, [kept], plan=plan).train()
    return kept


def test_micro_batches_give_the_loss_and_gradients_of_the_whole_batch(tiny_base, corpus, terms, tmp_path):
    whole = one_step(tiny_base, corpus, terms, tmp_path / "8x1", 8)
    pieces = one_step(tiny_base, corpus, terms, tmp_path / "1x8", 1)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-4)
    assert whole.gradients.keys() == pieces.gradients.keys()
    for name, gradient in whole.gradients.items():
        assert torch.allclose(pieces.gradients[name], gradient, atol=1e-4 * max(1.0, float(gradient.abs().max()))), name
    assert max(float(g.abs().max()) for g in whole.gradients.values()) > 1e-3


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_cleared_without_going_through_the_layers(set_to_none, monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    model(torch.ones(2, 3)).sum().backward()
    weights = list(model.parameters())
    with _clearing(model, weights), monkeypatch.context() as patched:
        patched.delattr(torch.nn.Module, "parameters")
        model.zero_grad(set_to_none=set_to_none)
    assert all((weight.grad is None) if set_to_none else not weight.grad.any() for weight in weights)
    assert "zero_grad" not in vars(model)


def test_a_plans_micro_batches_and_recomputed_blocks_change_nothing(tiny_base, corpus, terms, tmp_path):
    whole = one_step(tiny_base, corpus, terms, tmp_path / "whole", None)
    plan = plan_memory(tiny_base, 2**30, batch=2, input_tokens=30, label_tokens=15, device="cpu")
    plan = replace(plan, checkpointed_blocks=3)
    planned = one_step(tiny_base, corpus, terms, tmp_path / "planned", None, plan)
    assert planned.loss == pytest.approx(whole.loss, rel=1e-4)
    for name, gradient in whole.gradients.items():
        assert torch.allclose(planned.gradients[name], gradient, atol=1e-4 * max(1.0, float(gradient.abs().max()))), (
            name
        )


def test_a_base_that_does_not_fit_is_refused_before_it_is_loaded(tiny_base, corpus, terms, tmp_path, monkeypatch):
    monkeypatch.setattr("t5refine_peft.training.train.load_base", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(RefineError, match=r"needs .* GiB for 1 x 257 -> 129 tokens .*; give .* or take a smaller base"):
        train_adapter(
            corpus, domain="heart", glossary=terms, base=tiny_base,
            config=TrainingConfig(memory_bytes=1000, device="cpu"),
            adapters_dir=tmp_path / "adapters", runs_dir=tmp_path / "runs",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_run_within_a_given_memory_is_planned(tiny_base, corpus, terms, tmp_path):
    config = TrainingConfig(memory_bytes=10**9, device="cpu", max_steps=2, batch=4, adapter=AdapterConfig(rank=2))
    plan = plan_training(tiny_base, config)
    assert plan is not None
    assert (plan.device, plan.batch, plan.quantization) == ("cpu", 4, Quantization.none())
    assert plan_training(tiny_base, replace(config, memory_bytes=None)) is None
    result = train_adapter(
        corpus, domain="heart", glossary=terms, base=tiny_base, config=config,
        adapters_dir=tmp_path / "adapters", runs_dir=tmp_path / "runs",
    )  # fmt: skip
    assert result.steps == 2
    card = json.loads((result.path / "card.json").read_text(encoding="utf-8"))
    assert card["config"]["quantization"] == {"linear": "none", "head": "none", "embedding": "none"}


def test_a_saved_quantised_base_is_planned_as_it_is_stored(tiny_base, tmp_path):
    save_quantized(load_base(tiny_base, quantization=Quantization.nf4(), device="cpu"), tmp_path / "saved")
    plan = plan_training(tmp_path / "saved", TrainingConfig(memory_bytes=10**9, device="cpu"))
    assert plan is not None
    assert plan.quantization == Quantization.nf4()


def test_the_loss_is_cross_entropy_on_the_models_own_logits(base, corpus, terms):
    rows = prepare_dataset(corpus, vocabulary=base.vocabulary, glossary=Glossary(terms))["train"]
    collator = DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig())
    dataset = CorruptionDataset(rows, fresh=True)
    batch = collator([dataset[n] for n in range(6)])
    loss, count = token_loss(base.model, batch, base)
    logits = base.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    ).logits
    reference = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch["labels"].reshape(-1), ignore_index=-100)
    assert count == int((batch["labels"] != -100).sum())
    assert float(loss) / count == pytest.approx(float(reference), rel=1e-6)


def test_the_order_is_complete_grouped_and_depends_on_the_epoch():
    lengths = [(n * 37) % 101 for n in range(1000)]
    sampler = LengthGroupedSampler(lengths, batch=10, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(1000))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    spread = [
        max(map(lengths.__getitem__, first[i : i + 10])) - min(map(lengths.__getitem__, first[i : i + 10]))
        for i in range(0, 1000, 10)
    ]
    assert sum(spread) / len(spread) < 10
