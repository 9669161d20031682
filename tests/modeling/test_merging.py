from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from t5refine_peft import RefineError, load_base
from t5refine_peft.modeling.merging import merge_adapter
from t5refine_peft.modeling.probe import TEXTS, ask, log_probabilities


def test_the_merged_weights_are_the_sum_rounded_once(registry, tiny_base: Path, tmp_path: Path):
    made = merge_adapter(registry, "heart", output=tmp_path / "merged", device="cpu")
    before, after = load_file(tiny_base / "model.safetensors"), load_file(made.path / "model.safetensors")
    adapter = load_file(registry.find("heart") / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = 0
    for name, tensor in before.items():
        part = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{part}A.weight" in adapter:
            down, up = adapter[f"{part}A.weight"].float(), adapter[f"{part}B.weight"].float()
            exact = tensor + 3.0 / math.sqrt(2) * up @ down
            changed += 1
            # one rounding to bf16's 8 bits, and the sum's order in fp32
            assert ((after[name].float() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
        else:
            assert torch.equal(after[name], tensor.to(torch.bfloat16))
    assert changed == 2 * (4 + 3) + 2 * (8 + 3)


def test_any_program_reads_it_and_it_says_what_base_and_adapter_say(registry, tiny_base: Path, tmp_path: Path):
    made = merge_adapter(registry, "law", output=tmp_path / "merged", device="cpu")
    merged = AutoModelForSeq2SeqLM.from_pretrained(made.path, dtype=torch.float32).eval()
    stock = AutoModelForSeq2SeqLM.from_pretrained(tiny_base, dtype=torch.float32)
    summed = PeftModel.from_pretrained(stock, registry.find("law")).merge_and_unload().to(torch.bfloat16).float().eval()
    assert not torch.equal(merged.lm_head.weight, merged.shared.weight)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        found, wanted = (model(input_ids=ids, decoder_input_ids=ids).logits for model in (merged, summed))
    assert torch.allclose(found, wanted, atol=1e-4, rtol=0)
    ours = load_base(made.path, device="cpu", precision="float32")
    assert ours.vocabulary.fingerprint == registry.card("law")["tokenizer_fingerprint"]


def test_the_drift_is_the_distance_of_the_distributions(registry, tiny_base: Path, tmp_path: Path):
    texts = TEXTS[:3]
    made = merge_adapter(registry, "heart", output=tmp_path / "merged", device="cpu", texts=texts)
    base = load_base(tiny_base, device="cpu", precision="float32")
    adapted = PeftModel.from_pretrained(base.model, registry.find("heart")).eval()
    questions = ask(adapted, base, texts)
    merged = load_base(made.path, device="cpu", precision="bfloat16")
    exact, rounded = log_probabilities(adapted, base, questions), log_probabilities(merged.model, merged, questions)
    moved = [
        sum(max(0.0, float(p) - float(q)) for p, q in zip(known.exp(), found.exp(), strict=True))
        for one, other in zip(exact, rounded, strict=True)
        for known, found in zip(one, other, strict=True)
    ]
    assert made.drift.places == len(moved)
    assert made.drift.mean == pytest.approx(sum(moved) / len(moved), abs=1e-5)
    assert made.drift.largest == pytest.approx(max(moved), abs=1e-5)
    assert 0 < made.drift.mean < 0.2  # a random model whose adapter outweighs it: far more sensitive than a real one
    card = json.loads((made.path / "card.json").read_text())
    assert card["drift"]["mean"] == made.drift.mean
    assert card["adapter_fingerprint"] == registry.card("heart")["adapter_fingerprint"]


def test_a_merge_that_goes_wrong_shows_in_the_drift(registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    made = merge_adapter(registry, "heart", output=tmp_path / "merged", device="cpu")
    assert made.drift.mean > 4 * made.unmerged_drift.mean


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hart", {}, "no adapter 'hart'"),
        ("heart", {"base": "builtin:mt5-mini"}, "was trained on the base"),
        ("heart", {"texts": ["short"]}, "expected texts of at least ten tokens"),
        ("heart", {"output": "."}, "is there already"),
    ],
)
def test_what_cannot_be_merged_leaves_nothing(registry, tmp_path: Path, monkeypatch, name, options, message: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefineError, match=message):
        merge_adapter(registry, name, **{"output": "merged", "device": "cpu", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["adapters"]
