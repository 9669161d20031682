from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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
from t5refine_peft.corpus.preparation import prepare_corpus, prepare_dataset
from t5refine_peft.modeling.base import save_quantized
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.objective import token_loss
from t5refine_peft.training.order import LengthGroupedSampler
from t5refine_peft.training.planning import capped_memory, plan_training
from t5refine_peft.training.setup import build_trainer
from t5refine_peft.training.trainer import _clearing


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
    build_trainer(
        add_adapter(base, config.adapter), base, splits, collator, config, run, callbacks=[kept], plan=plan
    ).train()
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
    monkeypatch.setattr("t5refine_peft.training.setup.load_base", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(RefineError, match=r"needs .* GiB for 1 x 256 -> 128 tokens .*; give .* or take a smaller base"):
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


def test_the_longest_passage_that_was_prepared_is_planned_for(tiny_base, base, tmp_path):
    config = TrainingConfig(memory_bytes=10**9, device="cpu")
    texts = [" ".join(str(n * step % 9973) for step in range(200)) for n in range(1, 25)]
    prepared = prepare_corpus(texts, vocabulary=base.vocabulary, max_tokens=600, cache_dir=tmp_path / "cache")
    prepared.save(tmp_path / "prepared")
    longest = max(max(rows["length"]) for rows in prepared.splits.values())
    assert longest > 400
    for corpus in (prepared.splits, tmp_path / "prepared"):
        plan = plan_training(tiny_base, config, corpus)
        assert (plan.input_tokens, plan.label_tokens) == (longest + 1, min(256, longest // 2 + 1))
    more = replace(config, corruption=CorruptionConfig(mask_share=0.6, max_label_tokens=4096))
    assert plan_training(tiny_base, more, prepared.splits).label_tokens > 0.75 * longest


def test_a_written_pair_is_planned_for_as_it_was_written(tiny_base, base, tmp_path):
    pairs = []
    for n in range(2, 26):
        inputs = f"From {n} on, {n * n} times: <extra_id_0>, {n}."
        pairs.append({"inputs": inputs, "targets": "<extra_id_0> " + " ".join(map(str, range(n, n * n)))})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    splits = prepare_dataset(tmp_path / "pairs.jsonl", vocabulary=base.vocabulary, cache_dir=tmp_path / "cache")
    plan = plan_training(tiny_base, TrainingConfig(memory_bytes=10**9, device="cpu"), splits)
    collator = DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig())
    examples = [
        collator.example(item)
        for rows in splits.values()
        for item in map(CorruptionDataset(rows, fresh=False).__getitem__, range(len(rows)))
    ]
    assert plan.label_tokens == max(len(example.labels) for example in examples) > 80
    assert plan.input_tokens >= max(len(example.input_ids) for example in examples)


def test_the_cap_on_a_gpus_memory_is_undone(monkeypatch):
    """With PyTorch's own functions in place of a GPU."""
    fractions = [1.0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fractions[-1])
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: fractions.append(share))
    plan = plan_memory("google/mt5-base", 4 * 2**30 + (400 << 20))
    with pytest.raises(ZeroDivisionError), capped_memory(plan, torch.device("cuda")):
        _ = fractions[5] if fractions[-1] != 0.25 else 1 / 0
    assert fractions == [1.0, 0.25, 1.0]
    with capped_memory(plan, torch.device("cpu")), capped_memory(None, torch.device("cuda")):
        assert len(fractions) == 3


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
