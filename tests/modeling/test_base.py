from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t5refine_peft import RefineError, load_base


def test_an_untied_head_stays_as_the_file_has_it(tiny_base: Path, base):
    stored = load_file(tiny_base / "model.safetensors")
    assert not torch.equal(stored["lm_head.weight"], stored["shared.weight"])
    assert base.model.config.tie_word_embeddings is False
    base.model.tie_weights()
    assert torch.equal(base.model.lm_head.weight, stored["lm_head.weight"])
    assert torch.equal(base.model.shared.weight, stored["shared.weight"])


def test_official_bin_weights_load_the_same(tiny_base: Path, tmp_path: Path, base):
    directory = tmp_path / "bin"
    shutil.copytree(tiny_base, directory)
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(stored, directory / "pytorch_model.bin")
    loaded = load_base(directory, device="cpu", precision="float32")
    assert torch.equal(loaded.model.lm_head.weight, base.model.lm_head.weight)
    ids = torch.arange(5, 15)[None]
    logits = [b.model(input_ids=ids, decoder_input_ids=ids).logits for b in (loaded, base)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "spiece.model").unlink(), "has no tokenizer"),
        (lambda d: (d / "config.json").write_text(json.dumps({"model_type": "bert"})), "is a model of type 'bert'"),
        (lambda d: (d / "config.json").unlink(), r"expected config\.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json is broken"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    ],
)
def test_a_damaged_directory_gets_one_sentence(tiny_base: Path, tmp_path: Path, damage, message: str):
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_base, directory)
    damage(directory)
    with pytest.raises(RefineError, match=message):
        load_base(directory, device="cpu")


def test_unknown_bases_are_refused(tmp_path: Path):
    with pytest.raises(RefineError, match="no built-in base 'builtin:none': expected builtin:mt5-mini"):
        load_base("builtin:none")
    with pytest.raises(RefineError, match="is no model directory"):
        load_base(tmp_path / "none")
    with pytest.raises(RefineError, match="is no local directory, and the hub could not give it"):
        load_base("nobody/nothing")


def test_the_builtin_base_is_an_untied_mt5_in_the_official_layout():
    base = load_base("builtin:mt5-mini", device="cpu")
    assert base.model.config.model_type == "mt5"
    assert not torch.equal(base.model.lm_head.weight, base.model.shared.weight)
    first, last = base.vocabulary.sentinel_ids[0], base.vocabulary.sentinel_ids[-1]
    assert first - last == 99
    assert first < base.model.shared.num_embeddings
    from t5refine_peft.modeling.base import base_directory

    files = {path.name: path.stat().st_size for path in base_directory("builtin:mt5-mini").iterdir()}
    assert {"config.json", "spiece.model", "tokenizer_config.json", "model.safetensors", "card.json"} <= set(files)
    assert sum(files.values()) <= 28_000_000
