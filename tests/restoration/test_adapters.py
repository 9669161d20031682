from __future__ import annotations

import json
import math
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from t5refine_peft import Decoding, Quantization, RefineError, Restorer, load_base
from t5refine_peft.modeling.base import Base
from t5refine_peft.restoration import adapters as module
from t5refine_peft.restoration import mixing

IDS = torch.arange(5, 25)[None]
TEXTS = ["the patient ___ and ___", "___", "合同___生效", "a ___ b", "takes ___ for ___ now", "the ___ of"]
NAMES = ["heart", None, "law", "tax", "heart", "law"]


def full_precision(tiny_base: Path) -> Base:
    return load_base(tiny_base, device="cpu", precision="float32")


def nf4(tiny_base: Path) -> Base:
    return load_base(tiny_base, device="cpu", precision="float32", quantization=Quantization.nf4())


LOADERS = pytest.mark.parametrize("load", [full_precision, nf4])


def logits_of(restorer: Restorer, adapter: str | None) -> torch.Tensor:
    with restorer.using(adapter) as model, torch.inference_mode():
        return model(input_ids=IDS, decoder_input_ids=IDS).logits


@LOADERS
def test_adapters_swap_exactly_and_the_base_comes_back(tiny_base: Path, adapters: Path, load: Callable[[Path], Base]):
    base = load(tiny_base)
    untouched = base.model(input_ids=IDS, decoder_input_ids=IDS).logits
    restorer = Restorer(base, adapters_dir=adapters)
    first, law, again = (logits_of(restorer, name) for name in ("heart", "law", "heart"))
    assert torch.equal(first, again)
    assert not torch.allclose(first, law, atol=1e-2)
    assert torch.equal(logits_of(restorer, None), untouched)
    restorer.delete_adapter("law")
    assert restorer.adapters == ("heart",)
    restorer.delete_adapter("heart")
    assert torch.equal(logits_of(restorer, None), untouched)


@LOADERS
def test_an_adapter_adds_what_peft_says_it_adds(tiny_base: Path, adapters: Path, load: Callable[[Path], Base]):
    ours = logits_of(Restorer(load(tiny_base), adapters_dir=adapters), "law")
    reference = PeftModel.from_pretrained(load(tiny_base).model, str(adapters / "law")).eval()
    with torch.inference_mode():
        assert torch.equal(ours, reference(input_ids=IDS, decoder_input_ids=IDS).logits)


@LOADERS
@pytest.mark.parametrize("num_candidates", [1, 3])
def test_a_mixed_batch_equals_one_by_one(
    tiny_base: Path, adapters: Path, load: Callable[[Path], Base], num_candidates: int
):
    restorer = Restorer(load(tiny_base), adapters_dir=adapters)
    options = {"num_candidates": num_candidates, "max_gap_tokens": 4}
    mixed = restorer.restore(TEXTS, adapter=NAMES, **options)
    alone = [restorer.restore(text, adapter=name, **options) for text, name in zip(TEXTS, NAMES, strict=True)]
    assert [one.text for one in mixed] == [one.text for one in alone]
    for one, other in zip(mixed, alone, strict=True):
        for gap, expected in zip(one.gaps, other.gaps, strict=True):
            assert [c.text for c in gap.candidates] == [c.text for c in expected.candidates]
            scores = [(c.score, d.score) for c, d in zip(gap.candidates, expected.candidates, strict=True)]
            assert all(a == pytest.approx(b, abs=1e-4, rel=1e-3) for a, b in scores)


@LOADERS
def test_logits_of_a_mixed_batch_are_those_of_each_alone(tiny_base: Path, adapters: Path, load: Callable[[Path], Base]):
    restorer = Restorer(load(tiny_base), adapters_dir=adapters)
    ids = IDS.repeat(len(NAMES), 1)
    with restorer._pool.using(NAMES) as ready, torch.inference_mode():
        ready.assign(NAMES)(torch.arange(len(NAMES)))
        mixed = ready.model(input_ids=ids, decoder_input_ids=ids).logits
    for row, name in zip(mixed, NAMES, strict=True):
        assert torch.allclose(row, logits_of(restorer, name)[0], atol=1e-4)


def test_the_default_adapter_and_its_absence(tiny_base: Path, adapters: Path):
    restorer = Restorer(full_precision(tiny_base), adapters_dir=adapters)
    text = "the patient ___ and ___"
    alone, named = restorer.restore(text), restorer.restore(text, adapter="heart")
    restorer.set_adapter("heart")
    assert restorer.restore(text) == named
    assert restorer.restore([text, text], adapter=[None, "heart"]) == [named, named]
    elsewhere = []
    with restorer.disable_adapter():
        assert restorer.restore(text) == alone
        thread = threading.Thread(target=lambda: elsewhere.append(restorer.restore(text)))
        thread.start()
        thread.join()
    assert elsewhere == [named]
    assert restorer.restore(text) == named


def test_calls_from_many_threads_get_their_own_adapter(tiny_base: Path, adapters: Path):
    restorer = Restorer(full_precision(tiny_base), adapters_dir=adapters, encoder_cache_bytes=0)
    expected = {name: restorer.restore(TEXTS[:2], adapter=name, max_gap_tokens=3) for name in set(NAMES)}
    restorer = Restorer(full_precision(tiny_base), adapters_dir=adapters)
    wrong: list[object] = []

    def work(name: str | None) -> None:
        for _ in range(3):
            found = restorer.restore(TEXTS[:2], adapter=name, max_gap_tokens=3)
            if [r.text for r in found] != [r.text for r in expected[name]]:
                wrong.append((name, found))

    threads = [threading.Thread(target=work, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_least_recently_used_adapter_makes_room(tiny_base: Path, adapters: Path):
    base = full_precision(tiny_base)
    sizes = {
        name: Restorer(base, adapters_dir=adapters)._pool.fit(name).memory_bytes for name in ("heart", "law", "tax")
    }
    weights = load_file(adapters / "law" / "adapter_model.safetensors")
    assert sizes["law"] == sum(weight.numel() for weight in weights.values()) * 4  # fp32 in memory
    restorer = Restorer(base, adapters_dir=adapters, max_adapter_bytes=sizes["law"] + sizes["tax"])
    restorer.load_adapter("heart")
    restorer.load_adapter("law")
    restorer.restore("a ___", adapter="heart", max_gap_tokens=2)
    assert restorer.adapters == ("law", "heart")
    restorer.load_adapter("tax")
    assert restorer.adapters == ("heart", "tax")
    # More domains in a call than fit at once: in groups, with the same answers.
    roomy = Restorer(full_precision(tiny_base), adapters_dir=adapters)
    few, all_ = (r.restore(TEXTS, adapter=NAMES, max_gap_tokens=3) for r in (restorer, roomy))
    assert [r.text for r in few] == [r.text for r in all_]
    tight = Restorer(full_precision(tiny_base), adapters_dir=adapters, max_adapter_bytes=1000)
    with pytest.raises(RefineError, match=r"takes .* bytes in memory, more than the limit of 1,000"):
        tight.load_adapter("heart")


def test_an_adapter_in_use_stays(tiny_base: Path, adapters: Path):
    """With room for one at a time, a call within `using` neither drops its adapter nor answers with the base."""
    restorer = Restorer(full_precision(tiny_base), adapters_dir=adapters)
    restorer._pool._limit_bytes = restorer._pool.fit("tax").memory_bytes
    with restorer.using("heart") as model, torch.inference_mode():
        first = model(input_ids=IDS, decoder_input_ids=IDS).logits
        with pytest.raises(RefineError, match="those in use leave less of the limit"):
            restorer.restore("a ___", adapter="tax", max_gap_tokens=2)
        with pytest.raises(RefineError, match="the adapter 'heart' is in use"):
            restorer.delete_adapter("heart")
        restorer.restore("a ___", adapter="heart", max_gap_tokens=2)
        assert torch.equal(model(input_ids=IDS, decoder_input_ids=IDS).logits, first)
    restorer.restore("a ___", adapter="tax", max_gap_tokens=2)
    assert restorer.adapters == ("tax",)


def test_an_adapter_that_fails_to_load_leaves_the_others_on(tiny_base: Path, adapters: Path, monkeypatch):
    restorer = Restorer(full_precision(tiny_base), adapters_dir=adapters)
    heart = logits_of(restorer, "heart")
    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "load_adapter", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            restorer.load_adapter("law")
    assert torch.equal(logits_of(restorer, "heart"), heart)
    law = logits_of(Restorer(full_precision(tiny_base), adapters_dir=adapters), "law")
    assert torch.equal(logits_of(restorer, "law"), law)


TOLD = (RefineError, r"the adapter 'law' can't be loaded by PEFT \('half-way'\)")


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (TypeError, *TOLD),
        (IndexError, *TOLD),
        (OSError, *TOLD),
        (MemoryError, MemoryError, "half-way"),  # no fault of the adapter: a sound copy would not help
        (torch.OutOfMemoryError, torch.OutOfMemoryError, "half-way"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_fails_within_peft_leaves_nothing_and_is_one_sentence(
    tiny_base, adapters, monkeypatch, first, error, raised, message
):
    base = full_precision(tiny_base)
    restorer = Restorer(base, adapters_dir=adapters)
    if not first:
        restorer.load_adapter("heart")
    alone = logits_of(restorer, None)
    for owner, name in ((module, "load_adapted"), (PeftModel, "load_adapter")):
        whole = getattr(owner, name)

        def fails(*args, whole=whole, **options):
            whole(*args, **options)
            raise error("half-way")

        monkeypatch.setattr(owner, name, fails)
    with pytest.raises(raised, match=message):
        restorer.load_adapter("law")
    monkeypatch.undo()
    assert not any("law" in key for key in base.model.state_dict())
    assert any("lora" in key for key in base.model.state_dict()) != first
    assert torch.equal(logits_of(restorer, None), alone)
    for name in ("heart", "law"):  # what failed need not be the first that is loaded next
        own = logits_of(Restorer(full_precision(tiny_base), adapters_dir=adapters), name)
        assert torch.equal(logits_of(restorer, name), own)


@pytest.mark.parametrize(
    ("factor", "message"),
    [(math.nan, "are no finite numbers"), (math.inf, "are no finite numbers"), (1e30, "'x' gives scores that are no")],
)
def test_an_adapter_whose_weights_are_no_numbers_answers_nothing(tiny_base, adapters, tmp_path, factor, message):
    shutil.copytree(adapters / "heart", tmp_path / "x")
    file = tmp_path / "x" / "adapter_model.safetensors"
    save_file({name: tensor.float() * factor for name, tensor in load_file(file).items()}, file)
    restorer = Restorer(full_precision(tiny_base), adapters_dir=tmp_path)
    for options in (
        {"num_candidates": 3},
        {"decoding": Decoding.sampling()},
        {"detect": True, "detect_threshold": -8.0},
        {},
    ):
        with pytest.raises(RefineError, match=message):
            restorer.restore("the ___ heart", adapter="x", min_score=0.5, **options)
    assert restorer.restore("the ___ heart", max_gap_tokens=2).gaps[0].score >= 0


def test_a_mixed_batch_stays_within_the_limit(tiny_base: Path, adapters: Path):
    base = full_precision(tiny_base)
    sizes = {}
    for name in ("heart", "tax"):
        one = Restorer(base, adapters_dir=adapters)
        one.load_adapter(name)
        sizes[name] = sum(weight.nbytes for key, weight in base.model.state_dict().items() if "lora_" in key)
        one.delete_adapter(name)
    limit = sizes["heart"] + sizes["tax"] + 3 * sizes["tax"]  # their stack: both and zeros, of tax's rank
    restorer = Restorer(base, adapters_dir=adapters, max_adapter_bytes=limit)
    for name in ("law", "heart", "tax"):
        restorer.load_adapter(name)
    both = {"adapter": ["heart", "tax"], "max_gap_tokens": 2}
    alone = [restorer.restore("a ___", adapter=name, max_gap_tokens=2).text for name in both["adapter"]]
    assert [one.text for one in restorer.restore(["a ___"] * 2, **both)] == alone
    assert set(restorer.adapters) == {"heart", "tax"}
    less = Restorer(full_precision(tiny_base), adapters_dir=adapters, max_adapter_bytes=limit - 1)
    assert [one.text for one in less.restore(["a ___"] * 2, **both)] == alone  # one after the other


def test_a_stack_is_counted_to_the_byte_and_none_is_held_beside_the_next(
    tiny_base: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = full_precision(tiny_base)
    for name, targets in (("heart", ["q", "v"]), ("law", ["wi_0", "wo"]), ("tax", ["v", "wi_1"])):
        shutil.copytree(adapters / name, tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
        file = tmp_path / name / "adapter_model.safetensors"
        own = {
            key: weight for key, weight in load_file(file).items() if key.split(".lora_")[0].endswith(tuple(targets))
        }
        save_file(own, file)
    restorer = Restorer(base, adapters_dir=tmp_path)
    held = stacks_of(monkeypatch)
    for names in (["heart", "law"], ["law", "tax"], ["heart", "law", "tax"], ["tax", None]):
        texts = ["a ___"] * len(names)
        together = restorer.restore(texts, adapter=names, max_gap_tokens=2)
        counted = mixing.stack_bytes([restorer._pool.fit(name).layout for name in names if name], dtype=torch.float32)
        assert max(held) == held[-1] == counted  # at no time more than that
        assert [one.text for one in together] == [
            restorer.restore("a ___", adapter=name, max_gap_tokens=2).text for name in names
        ]
        for name in ("heart", "law", "tax"):
            restorer.load_adapter(name)
        held.clear()


def stacks_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of all stacks that live, noted whenever one is made."""
    living: weakref.WeakSet[object] = weakref.WeakSet()
    held: list[int] = []
    make = mixing._stack

    def noted(*arguments):
        stack = make(*arguments)
        living.add(stack)
        held.append(sum(one.down.nbytes + one.up.nbytes for one in living))
        return stack

    monkeypatch.setattr(mixing, "_stack", noted)
    return held


@pytest.mark.parametrize("number", ["1" + 400 * "0", "Infinity", "NaN", "true", '"1"'])
@pytest.mark.parametrize("key", ["calibration.temperature", "detection.threshold"])
def test_a_card_with_an_odd_number_is_refused(tiny_base: Path, adapters: Path, tmp_path: Path, number: str, key: str):
    shutil.copytree(adapters / "heart", tmp_path / "x")
    part, _, name = key.partition(".")
    (tmp_path / "x" / "card.json").write_text(f'{{"{part}": {{"{name}": {number}}}}}')
    with pytest.raises(RefineError, match=rf"{key} must be a number( from 0.25 to 8)?, found .{{1,60}}; train it anew"):
        Restorer(full_precision(tiny_base), adapters_dir=tmp_path).load_adapter("x")


@pytest.mark.parametrize("temperature", ["1e-300", "0.2", "9"])
def test_a_temperature_that_no_fit_gives_is_refused(tiny_base, adapters, tmp_path, temperature):
    shutil.copytree(adapters / "heart", tmp_path / "x")
    (tmp_path / "x" / "card.json").write_text(f'{{"calibration": {{"temperature": {temperature}}}}}')
    with pytest.raises(RefineError, match=r"calibration.temperature must be a number from 0.25 to 8, found"):
        Restorer(full_precision(tiny_base), adapters_dir=tmp_path).load_adapter("x")


def test_an_adapter_that_is_read_anew_forgets_what_the_encoder_made(tiny_base: Path, adapters: Path, tmp_path: Path):
    shutil.copytree(adapters / "heart", tmp_path / "x")
    restorer = Restorer(full_precision(tiny_base), adapters_dir=tmp_path)
    heart = restorer.restore("the ___", adapter="x", max_gap_tokens=3)
    restorer.delete_adapter("x")
    shutil.rmtree(tmp_path / "x")
    shutil.copytree(adapters / "law", tmp_path / "x")
    other = Restorer(full_precision(tiny_base), adapters_dir=adapters).restore(
        "the ___", adapter="law", max_gap_tokens=3
    )
    assert restorer.restore("the ___", adapter="x", max_gap_tokens=3) == other != heart


def test_a_domain_may_have_any_plain_name(tiny_base: Path, adapters: Path, tmp_path: Path):
    """PEFT keeps adapters in torch modules, whose names hold no dots and are none of a module's own attributes."""
    for copy, name in {"v1.2": "heart", "keys": "law", "v1-2": "law"}.items():
        shutil.copytree(adapters / name, tmp_path / copy)
    base = full_precision(tiny_base)
    expected = [
        one.text for one in Restorer(base, adapters_dir=adapters).restore(TEXTS[:3], adapter=["heart", "law", "law"])
    ]
    renamed = Restorer(full_precision(tiny_base), adapters_dir=tmp_path)
    assert [one.text for one in renamed.restore(TEXTS[:3], adapter=["v1.2", "keys", "v1-2"])] == expected
    renamed.delete_adapter("v1.2")
    assert renamed.adapters == ("keys", "v1-2")


def _change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("card.json", {"base": "other", "base_fingerprint": "0"}, "was trained on the base 'other'"),
        ("card.json", {"tokenizer_fingerprint": "0"}, "was trained with the tokenizer '0'"),
        (
            "card.json",
            {"calibration": {"temperature": -1}},
            "must be a number from 0.25 to 8, found -1",
        ),
        ("adapter_config.json", {"r": 3}, "is not the LoRA adapter of rank 3 that adapter_config.json describes"),
        ("adapter_config.json", {"use_dora": True}, "'use_dora' is True, which is not plain LoRA"),
        ("adapter_config.json", {"peft_type": "IA3"}, "peft_type must be 'LORA', found 'IA3'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_a_weight_is_touched(
    tiny_base: Path, adapters: Path, tmp_path: Path, file: str, changes: dict[str, object], message: str
):
    shutil.copytree(adapters / "law", tmp_path / "law")
    _change(tmp_path / "law" / file, **changes)
    base = full_precision(tiny_base)
    before = [name for name, _ in base.model.named_modules()]
    with pytest.raises(RefineError, match=message):
        Restorer(base, adapters_dir=tmp_path).load_adapter("law")
    assert [name for name, _ in base.model.named_modules()] == before


def test_adapters_that_are_not_there_or_of_another_size_are_refused(tiny_base: Path, adapters: Path, tmp_path: Path):
    restorer = Restorer(full_precision(tiny_base), adapters_dir=adapters)
    with pytest.raises(RefineError, match=r"no adapter 'hart' in .*: found heart, law, tax; did you mean heart"):
        restorer.load_adapter("hart")
    with pytest.raises(RefineError, match="can't name an adapter"):
        restorer.load_adapter("../heart")
    with pytest.raises(RefineError, match="is not loaded"):
        restorer.delete_adapter("law")
    shutil.copytree(adapters / "law", tmp_path / "law")
    weights = load_file(tmp_path / "law" / "adapter_model.safetensors")
    wide = {name: torch.cat([w, w], 1) if "lora_A" in name else w for name, w in weights.items()}
    save_file(wide, tmp_path / "law" / "adapter_model.safetensors")
    with pytest.raises(RefineError, match=r"is \(32, 32\) in the base and \(32, 64\) in the adapter"):
        Restorer(full_precision(tiny_base), adapters_dir=tmp_path).load_adapter("law")
