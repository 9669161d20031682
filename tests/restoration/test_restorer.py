from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft import AdapterConfig, RefineError, Restorer, load_base
from t5refine_peft.modeling.lora import add_adapter, save_adapter


@pytest.fixture(scope="module")
def restorer(tiny_base: Path) -> Restorer:
    return Restorer(load_base(tiny_base, device="cpu", precision="float32"), adapters_dir="none")


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(["heart", "law"]):
        base = load_base(tiny_base, device="cpu", precision="float32")
        torch.manual_seed(seed)
        model = add_adapter(base, AdapterConfig(rank=2 + 2 * seed))
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.3)
        (directory / name).mkdir()
        save_adapter(model, directory / name)
        card = {"base": str(tiny_base), "base_fingerprint": base.fingerprint}
        (directory / name / "card.json").write_text(json.dumps(card))
    return directory


def outside(text: str, gaps) -> list[str]:
    borders = [0, *(border for gap in gaps for border in gap), len(text)]
    return [text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=texts, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_all_but_the_gaps_is_untouched_and_every_gap_is_answered(restorer, text, cuts):
    places = sorted(min(cut, len(text)) for cut in cuts)
    ranges = list(zip(places[::2], places[1::2], strict=False))
    restored = restorer.restore([text], gaps=[ranges], max_gap_tokens=3)[0]
    assert len(restored.gaps) == len(ranges)
    assert outside(restored.text, [(gap.start, gap.end) for gap in restored.gaps]) == outside(text, ranges)
    assert all(restored.text[gap.start : gap.end] == gap.text and 0 <= gap.score <= 1 for gap in restored.gaps)


def test_a_hundred_and_fifty_gaps(restorer):
    text = "心□e\u0301□😀" * 75
    restored = restorer.restore(text, max_gap_tokens=2)
    assert len(restored.gaps) == 150
    kept = outside(restored.text, [(gap.start, gap.end) for gap in restored.gaps])
    assert "".join(kept) == text.replace("□", "")


def test_a_text_without_gaps_comes_back(restorer):
    assert restorer.restore("Ｆｕｌｌ　width  and  spaces\r\n").text == "Ｆｕｌｌ　width  and  spaces\r\n"
    assert restorer.restore([]) == []


def test_literal_sentinels_are_text_where_a_mark_is_given(restorer):
    restored = restorer.restore("see <extra_id_5> and ???", gap="???")
    assert restored.text.startswith("see <extra_id_5> and ")
    assert len(restored.gaps) == 1


def test_candidates_differ_and_begin_with_the_answer(restorer):
    gap = restorer.restore("the patient ___ well", num_candidates=4, max_gap_tokens=3).gaps[0]
    assert gap.candidates[0].text == gap.text
    assert 1 < len(gap.candidates) <= 4


def logits_of(restorer: Restorer, adapter: str | None) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    with restorer.using(adapter) as model, torch.inference_mode():
        return model(input_ids=ids, decoder_input_ids=ids).logits


def test_adapters_swap_exactly_and_the_base_comes_back(tiny_base: Path, adapters: Path):
    base = load_base(tiny_base, device="cpu", precision="float32")
    untouched = base.model(input_ids=torch.arange(5, 25)[None], decoder_input_ids=torch.arange(5, 25)[None]).logits
    restorer = Restorer(base, adapters_dir=adapters)
    first, law, again = (logits_of(restorer, name) for name in ("heart", "law", "heart"))
    assert torch.equal(first, again)
    assert not torch.allclose(first, law, atol=1e-2)
    assert torch.equal(logits_of(restorer, None), untouched)
    restorer.delete_adapter("law")
    assert restorer.adapters == ("heart",)
    restorer.delete_adapter("heart")
    assert torch.equal(logits_of(restorer, None), untouched)


def test_the_default_adapter_and_its_absence(tiny_base: Path, adapters: Path):
    restorer = Restorer(load_base(tiny_base, device="cpu", precision="float32"), adapters_dir=adapters)
    text = "the patient ___ and ___"
    alone, named = restorer.restore(text), restorer.restore(text, adapter="heart")
    restorer.set_adapter("heart")
    assert restorer.restore(text) == named
    with restorer.disable_adapter():
        assert restorer.restore(text) == alone


def test_unknown_adapters_and_those_of_another_base_are_refused(tiny_base: Path, adapters: Path):
    restorer = Restorer(load_base(tiny_base, device="cpu", precision="float32"), adapters_dir=adapters)
    with pytest.raises(RefineError, match=r"no adapter 'hart' in .*: found heart, law; did you mean heart"):
        restorer.load_adapter("hart")
    with pytest.raises(RefineError, match="can't name an adapter"):
        restorer.load_adapter("../heart")
    card = adapters / "law" / "card.json"
    good = card.read_text()
    card.write_text(json.dumps({"base": "other", "base_fingerprint": "0"}))
    try:
        with pytest.raises(RefineError, match="was trained on the base 'other'"):
            restorer.load_adapter("law")
    finally:
        card.write_text(good)
    with pytest.raises(RefineError, match="is not loaded"):
        restorer.delete_adapter("law")
