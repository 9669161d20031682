from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_bases import write_base

from t5refine_peft import RefineError
from t5refine_peft.modeling.shapes import read_shape

MILLIONS = {  # encoder's and decoder's weights, embedding, rank 16 on all linear layers (the table of the field notes)
    "small": (18.88 + 25.18, 128.06, 2.56),
    "base": (84.95 + 113.28, 192.09, 6.78),
    "large": (308.33 + 409.02, 256.11, 18.28),
    "xl": (1157.73 + 1560.43, 512.23, 35.39),
    "xxl": (4630.71 + 6241.43, 1024.46, 70.78),
}


@pytest.mark.parametrize("size", MILLIONS)
def test_the_published_mt5s_have_their_known_numbers_of_weights(size: str):
    shape = read_shape(f"google/mt5-{size}")
    blocks, embedding, adapter = MILLIONS[size]
    weights = sum(rows * width for rows, width in shape.matrices())
    weights += shape.norm_weights + shape.bias_tables * shape.buckets * shape.heads
    assert weights / 1e6 == pytest.approx(blocks, abs=0.02)
    assert shape.rows * shape.width / 1e6 == pytest.approx(embedding, abs=0.01)
    assert 16 * sum(map(sum, shape.matrices())) / 1e6 == pytest.approx(adapter, abs=0.01)


def test_a_directorys_shape_is_that_of_its_model(tiny_base: Path, base):
    shape = read_shape(tiny_base)
    linear = [
        module for name, module in base.model.named_modules() if "block" in name and hasattr(module, "in_features")
    ]
    assert sorted(shape.matrices()) == sorted((module.out_features, module.in_features) for module in linear)
    norms = sum(weight.numel() for name, weight in base.model.named_parameters() if "norm" in name)
    assert shape.norm_weights == norms
    biases = sum(weight.numel() for name, weight in base.model.named_parameters() if "relative" in name)
    assert shape.bias_tables * shape.buckets * shape.heads == biases
    assert not shape.tied
    assert read_shape(tiny_base / "config.json").matrices() == shape.matrices()


@pytest.mark.parametrize(("kind", "tied"), [("t5", True), ("flan-t5", False), ("mt5", False), ("umt5", False)])
def test_a_head_that_transformers_saved_is_counted(kind, tied, tmp_path: Path, tokenizer_dir: Path):
    """`MT5Config` writes that it is tied although the file holds both matrices, and they differ."""
    write_base(tmp_path, tokenizer_dir, kind=kind, rows=300)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": kind != "flan-t5"}))
    assert read_shape(tmp_path).tied is tied


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config\.json is broken"),
        ("[]", r"config\.json is broken"),
        (json.dumps({"model_type": "bert"}), "is a model of type 'bert'"),
        (json.dumps({"model_type": "mt5", "num_layers": 2}), "is no T5's: expected vocab_size in it"),
    ],
)
def test_a_broken_configuration_gets_one_sentence(tmp_path: Path, config: str, message: str):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(RefineError, match=message):
        read_shape(tmp_path)


def test_a_base_that_is_nowhere_is_named(tmp_path: Path):
    with pytest.raises(RefineError, match=r"expected config\.json"):
        read_shape(tmp_path)
    with pytest.raises(RefineError, match="is not in the cache of downloaded models"):
        read_shape("nobody/nothing")


def test_published_bases_of_other_kinds_are_known_offline():
    umt5, flan = read_shape("google/umt5-base"), read_shape("google/flan-t5-base")
    assert umt5.bias_tables == 24  # one a layer
    assert (flan.rows, flan.tied, flan.gated) == (32_128, False, True)

    def millions(shape) -> float:
        blocks = sum(rows * width for rows, width in shape.matrices()) + shape.norm_weights
        return (2 * shape.rows * shape.width + blocks + shape.bias_tables * shape.buckets * shape.heads) / 1e6

    assert millions(flan) == pytest.approx(247.58, abs=0.01)  # as the hub counts the weights of its file
    assert millions(umt5) == pytest.approx(millions(read_shape("google/mt5-base")) + 9.63 + 0.01, abs=0.02)
