from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from t5refine_peft import (
    AdapterConfig,
    Quantization,
    RefineError,
    Restorer,
    TrainingConfig,
    load_base,
    train_adapter,
)

CONFIG = TrainingConfig(
    adapter=AdapterConfig(rank=4, dropout=0.0),
    max_steps=12,
    eval_steps=4,
    batch=8,
    learning_rate=1e-2,
    device="cpu",
    precision="float32",
    validation_share=0.2,
    test_share=0.2,
    start_step=0.9,
)


def train(tiny_base: Path, corpus, terms, where: Path, **options):
    places = {"adapters_dir": where / "adapters", "runs_dir": where / "runs"}
    options = {"config": CONFIG, **places, **options}
    return train_adapter(corpus, domain="heart", glossary=terms, base=tiny_base, **options)


def test_a_run_writes_a_measured_adapter_and_leaves_the_base_as_it_was(tiny_base, corpus, terms, tmp_path):
    base = load_base(tiny_base, device="cpu", precision="float32")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    result = train(base, corpus, terms, tmp_path)
    assert {path.name for path in result.path.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "card.json", "report.html",
    }  # fmt: skip
    card = json.loads((result.path / "card.json").read_text(encoding="utf-8"))
    assert card["base_fingerprint"] == base.fingerprint
    assert card["metrics"]["adapter"]["token_loss"] == pytest.approx(result.adapter_scores.token_loss, abs=1e-5)
    assert result.adapter_scores.token_loss < result.base_scores.token_loss
    assert result.steps == 12
    assert result.adapter_bytes < 100_000
    assert result.tokens > 0
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["lm_head.weight"], after["shared.weight"])
    for text in corpus:
        assert text not in (result.path / "report.html").read_text(encoding="utf-8")
    restored = Restorer(tiny_base, adapters_dir=tmp_path / "adapters", device="cpu").restore(
        "takes ___ for", adapter="heart"
    )
    assert len(restored.gaps) == 1


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_stopped_run_resumes_to_the_same_adapter(tiny_base, corpus, terms, tmp_path):
    whole = train(tiny_base, corpus, terms, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny_base, corpus, terms, tmp_path / "cut", callbacks=[StopAt(6)])
    assert not (tmp_path / "cut" / "adapters" / "heart").exists()
    resumed = train(tiny_base, corpus, terms, tmp_path / "cut", resume=True)
    first, second = (load_file(result.path / "adapter_model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole.best_step, whole.steps) == (resumed.best_step, resumed.steps)


def test_a_quantised_base_trains_and_its_adapter_restores_on_any_other_storage(tiny_base, corpus, terms, tmp_path):
    config = replace(CONFIG, quantization=Quantization.nf4(embedding="int8"), max_steps=6, eval_steps=3)
    result = train(tiny_base, corpus, terms, tmp_path, config=config)
    card = json.loads((result.path / "card.json").read_text(encoding="utf-8"))
    assert card["config"]["quantization"] == {"linear": "nf4", "head": "int8", "embedding": "int8"}
    assert result.adapter_scores.token_loss < result.base_scores.token_loss
    for scheme in (None, Quantization.int8()):
        restorer = Restorer(tiny_base, adapters_dir=tmp_path / "adapters", device="cpu", quantization=scheme)
        assert len(restorer.restore("takes ___ for", adapter="heart", num_candidates=2).gaps[0].candidates) == 2


def test_training_without_a_glossary_scores_no_terms(tiny_base, corpus, tmp_path):
    result = train(tiny_base, corpus, None, tmp_path)
    assert result.adapter_scores is None
    assert "no term was scored" in (result.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": []}, "the corpus is empty"),
        ({"glossary": ["zzzz"]}, "none of the 1 terms occurs"),
        ({"glossary": ["", " "]}, "holds no term"),
        ({"domain": "../x"}, "can't name an adapter"),
        ({"resume": True}, "nothing to resume"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tiny_base, corpus, terms, tmp_path, change, message):
    places = {"adapters_dir": tmp_path / "adapters", "runs_dir": tmp_path / "runs"}
    options = {"corpus": corpus, "domain": "heart", "glossary": terms, "config": CONFIG, **places, **change}
    with pytest.raises(RefineError, match=message):
        train_adapter(options.pop("corpus"), base=tiny_base, **options)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_place_that_cannot_be_written_is_named(tiny_base, corpus, terms, tmp_path):
    (tmp_path / "adapters").write_text("a file")
    with pytest.raises(RefineError, match="can't be written"):
        train(tiny_base, corpus, terms, tmp_path)


def test_all_faults_of_a_configuration_are_told_at_once():
    with pytest.raises(
        RefineError, match="batch must be above 0, found 0; warmup_share must lie between 0 and 1, found 2"
    ):
        TrainingConfig(batch=0, warmup_share=2)
