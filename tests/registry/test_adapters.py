from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t5refine_peft import AdapterRegistry, RefineError

WEIGHTS = "adapter_model.safetensors"


def edit_card(registry: AdapterRegistry, name: str, **changes) -> None:
    path = registry.find(name) / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_names_and_summaries(registry: AdapterRegistry, tiny_base: Path):
    assert registry.names() == ["heart", "law"]
    heart, law = registry.summaries()
    assert (heart.rank, heart.base, heart.term_exact_match) == (2, str(tiny_base), 0.5)
    assert heart.weights_bytes == (registry.find("heart") / WEIGHTS).stat().st_size
    (registry.find("law") / WEIGHTS).write_bytes(b"x")
    heart, law = registry.summaries()
    assert heart.fault is None
    assert "no sound safetensors file" in law.fault
    assert AdapterRegistry(registry.directory / "none").summaries() == []


def test_directories_without_a_plain_name_are_no_adapters(registry: AdapterRegistry):
    registry.find("law").rename(registry.directory / "a b")
    registry.find("heart").rename(registry.directory / ".heart.part")
    assert registry.names() == []


def test_the_layout_is_that_of_the_tensors(registry: AdapterRegistry):
    layout = registry.layout("law")
    tensors = load_file(registry.find("law") / WEIGHTS)
    assert layout.rank == 4
    assert layout.scale == 4.0 / 4**0.5
    assert layout.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert len(layout.layers) == len(tensors) // 2 == 2 * (4 + 3) + 2 * (8 + 3)
    assert layout.layers["encoder.block.0.layer.1.DenseReluDense.wo"] == (32, 48)


def test_a_fitting_adapter_passes_and_says_so(registry: AdapterRegistry, identity):
    assert registry.check("heart", identity).rank == 2
    found = registry.verify("heart", identity)
    assert (found.recorded, found.base) == (True, identity.name)
    assert registry.verify("heart").base is None


def test_an_adapter_without_a_card_is_judged_by_its_matrices(registry: AdapterRegistry, identity):
    (registry.find("heart") / "card.json").unlink()
    assert registry.card("heart") == {}
    assert registry.verify("heart", identity).recorded is False
    narrow = replace(identity, layers={name: (rows, 16) for name, (rows, _) in identity.layers.items()})
    with pytest.raises(RefineError, match=r"does not fit the base .*: .* is \(32, 16\) in the base and \(32, 32\)"):
        registry.check("heart", narrow)


def test_another_base_or_tokenizer_is_refused_before_the_shapes(registry: AdapterRegistry, identity):
    with pytest.raises(RefineError, match=r"was trained on the base .* not on 'other' \(weights 0\)"):
        registry.check("heart", replace(identity, name="other", fingerprint="0"))
    edit_card(registry, "heart", tokenizer_fingerprint="0")
    with pytest.raises(RefineError, match=r"was trained with the tokenizer '0', but .* has"):
        registry.check("heart", identity)


def test_a_layer_too_few_or_too_many_is_refused(registry: AdapterRegistry, identity):
    gone = "decoder.block.1.layer.1.EncDecAttention.k"
    fewer = {name: shape for name, shape in identity.layers.items() if name != gone}
    with pytest.raises(RefineError, match=f"the base has no linear layer {gone}"):
        registry.check("heart", replace(identity, layers=fewer))
    more = {**identity.layers, "decoder.block.2.layer.0.SelfAttention.k": (32, 32)}
    with pytest.raises(RefineError, match=r"the adapter has no weights for decoder\.block\.2"):
        registry.check("heart", replace(identity, layers=more))
    config = registry.find("heart") / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "target_modules": [*settings["target_modules"], "lm_head"]}))
    with pytest.raises(RefineError, match="it has no layer lm_head"):
        registry.check("heart", identity)
    config.write_text(json.dumps({**settings, "target_modules": ["k", "o", "q", "v", "wi_0", "wo"]}))
    with pytest.raises(RefineError, match="wi_1 is none of its target_modules"):
        registry.check("heart", identity)


def test_a_changed_weight_is_found_by_its_fingerprint(registry: AdapterRegistry):
    path = registry.find("heart") / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RefineError, match="was changed since it was written: its card names the contents"):
        registry.verify("heart")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_found(registry: AdapterRegistry, dtype: torch.dtype, value: float):
    path = registry.find("heart") / WEIGHTS
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    edit_card(registry, "heart", adapter_fingerprint=None)
    save_file(tensors, path)
    assert registry.verify("heart").recorded is False
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, path)
    with pytest.raises(RefineError, match=r"1 of the \d+ weights of .* are no finite numbers"):
        registry.verify("heart")


def test_remove(registry: AdapterRegistry, tmp_path: Path):
    registry.remove("heart")
    assert [path.name for path in registry.directory.iterdir()] == ["law"]
    with pytest.raises(RefineError, match="no adapter 'heart'"):
        registry.remove("heart")
    elsewhere = registry.find("law").rename(tmp_path / "elsewhere")
    registry.place("law").symlink_to(elsewhere)
    registry.remove("law")
    assert registry.names() == []
    assert (elsewhere / WEIGHTS).is_file()


def test_the_base_of_a_card(registry: AdapterRegistry, tiny_base: Path):
    assert registry.base_of("heart") == str(tiny_base)
    edit_card(registry, "heart", base=None)
    with pytest.raises(RefineError, match="names no base: give the one it was trained on"):
        registry.base_of("heart")


def test_nothing_of_the_registry_needs_torch(registry: AdapterRegistry, tmp_path: Path):
    code = (
        "import sys; from t5refine_peft import AdapterRegistry; r = AdapterRegistry(sys.argv[1]); r.summaries();"
        "r.verify('heart'); r.pack('heart', sys.argv[2]); r.unpack(sys.argv[2], domain='again'); r.remove('heart');"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(registry.directory), str(tmp_path / "heart.zip")]
    assert subprocess.run(command, check=False).returncode == 0
    assert registry.names() == ["again", "law"]
