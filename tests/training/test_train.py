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
    AdapterRegistry,
    DataCollatorForTermCorruption,
    Glossary,
    Quantization,
    RefineError,
    Restorer,
    TrainingConfig,
    load_base,
    train_adapter,
)
from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.corpus.preparation import prepare_corpus
from t5refine_peft.modeling.identity import identify
from t5refine_peft.training.data import training_data

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
        "adapter_model.safetensors", "adapter_config.json", "card.json", "report.html", "training.toml",
    }  # fmt: skip
    card = json.loads((result.path / "card.json").read_text(encoding="utf-8"))
    assert card["base_fingerprint"] == base.fingerprint
    assert AdapterRegistry(tmp_path / "adapters").verify("heart", identify(base)).recorded
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
    with pytest.raises(RefineError, match=r"found 'float16' .fp16 is not offered.*metric must be loss or .* 'bleu'"):
        TrainingConfig(precision="float16", metric="bleu")


def test_a_prepared_directory_trains_as_its_corpus_does(tiny_base, vocabulary, corpus, terms, tmp_path):
    config = replace(CONFIG, max_passage_tokens=32)
    options = {"validation_share": 0.2, "test_share": 0.2, "cache_dir": tmp_path / "cache"}
    prepared = prepare_corpus(corpus, vocabulary=vocabulary, glossary=Glossary(terms), max_tokens=32, **options)
    prepared.save(tmp_path / "prepared")
    from_texts = train(tiny_base, corpus, terms, tmp_path / "texts", config=config)
    from_directory = train(tiny_base, [str(tmp_path / "prepared")], None, tmp_path / "directory")
    first, second = (load_file(result.path / "adapter_model.safetensors") for result in (from_texts, from_directory))
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (json.loads((r.path / "card.json").read_text()) for r in (from_texts, from_directory))
    assert first == second
    assert first["glossary_fingerprint"] == Glossary(terms).fingerprint

    with pytest.raises(RefineError, match="was prepared with another term list"):
        train(tiny_base, tmp_path / "prepared", ["furosemide"], tmp_path)
    with pytest.raises(RefineError, match="is a prepared dataset, and is trained on alone"):
        train(tiny_base, [tmp_path / "prepared", tmp_path / "a.txt"], terms, tmp_path)
    with pytest.raises(RefineError, match="was prepared for another tokenizer"):
        train("builtin:mt5-mini", tmp_path / "prepared", terms, tmp_path)


def test_written_pairs_train_as_they_are(tiny_base, vocabulary, terms, tmp_path, caplog):
    for name, numbers in (("train", range(40)), ("valid", range(900, 920))):
        rows = [
            {
                "inputs": f"Case {n * n}: the <extra_id_0> takes <extra_id_1> for congestion, {n} mg.",
                "targets": "<extra_id_0> patient <extra_id_1> furosemide <extra_id_2>",
            }
            for n in numbers
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = [tmp_path / "train.jsonl", tmp_path / "valid.jsonl"]
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('\n{"inputs": "a <extra_id_1>", "targets": "<extra_id_1> b"}')
    result = train(tiny_base, files, terms, tmp_path)
    assert "1 pairs were left out; the first is" in caplog.text
    assert "train.jsonl, line 41: expected the inputs' sentinels to count up from 0, found 1" in caplog.text
    assert result.adapter_scores.gaps > 0
    assert result.adapter_scores.token_loss < result.base_scores.token_loss

    data = training_data(files, vocabulary=vocabulary, glossary=None, config=CONFIG)
    items = CorruptionDataset(data.splits["train"], fresh=True)
    items.set_epoch(3)
    batch = DataCollatorForTermCorruption(vocabulary, CONFIG.corruption)([items[n] for n in range(len(items))])
    s0, s1, eos = *vocabulary.sentinel_ids[:2], vocabulary.eos_id
    encode = vocabulary.encode_continuation
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        wanted = [s0, *encode(" patient").ids, s1, *encode(" furosemide").ids, eos]
        assert labels[: len(wanted)] == wanted
        assert set(labels[len(wanted) :]) <= {-100}
        assert vocabulary.decode(ids[: ids.index(s0)]).endswith(": the")
        assert vocabulary.decode(ids[ids.index(s0) : ids.index(s1)]) == " takes"
