from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_bases import KINDS, write_base

from t5refine_peft import RefineError, TrainingConfig, load_base


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


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_transformers_reads_it(kind, tmp_path: Path, tokenizer_dir: Path, vocabulary):
    """To the bit, and a later tie_weights() changes nothing: not even umT5's, whose flag stays since it scales."""
    theirs = write_base(tmp_path, tokenizer_dir, kind=kind, rows=len(vocabulary) + 13)
    ours = load_base(tmp_path, device="cpu", precision="float32")
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        wanted = theirs(input_ids=ids, decoder_input_ids=ids).logits
        assert torch.equal(ours.model(input_ids=ids, decoder_input_ids=ids).logits, wanted)
        ours.model.tie_weights()
        assert torch.equal(ours.model(input_ids=ids, decoder_input_ids=ids).logits, wanted)
    assert ours.model.config.tie_word_embeddings is (kind in {"t5", "umt5"})
    assert (ours.model.lm_head.weight is ours.model.shared.weight) is (kind == "t5")
    assert ours.model.encoder.embed_tokens.weight is ours.model.shared.weight


def test_a_head_equal_to_the_embedding_is_tied_by_value(tiny_base: Path, tmp_path: Path):
    shutil.copytree(tiny_base, tmp_path / "tied")
    stored = load_file(tmp_path / "tied" / "model.safetensors")
    save_file({**stored, "lm_head.weight": stored["shared.weight"].clone()}, tmp_path / "tied" / "model.safetensors")
    model = load_base(tmp_path / "tied", device="cpu").model
    assert model.lm_head.weight is model.shared.weight
    assert model.config.tie_word_embeddings is True


def test_older_bins_parts_and_the_embeddings_other_names_load(tiny_base: Path, tmp_path: Path, base):
    stored = load_file(tiny_base / "model.safetensors")
    stored["decoder.embed_tokens.weight"] = stored.pop("shared.weight")
    stored["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 2)
    names = sorted(stored)
    directory = tmp_path / "parts"
    shutil.copytree(tiny_base, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    for number, part in enumerate((names[::2], names[1::2])):
        file = directory / f"pytorch_model-0000{number + 1}-of-00002.bin"
        torch.save({name: stored[name] for name in part}, file, _use_new_zipfile_serialization=bool(number))
    loaded = load_base(directory, device="cpu", precision="float32").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in base.model.state_dict().items())


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [s.pop("lm_head.weight"), s.pop("shared.weight")], r"the tensor shared\.weight is missing"),
        (
            lambda s: s.update({"lm_head.weight": torch.zeros(3, 32)}),
            r"expected lm_head\.weight to be .* found \(3, 32\)",
        ),
        (lambda s: s.update({"extra.weight": torch.zeros(3)}), r"1 tensors that the model .* such as extra\.weight"),
        (lambda s: s.update({"evil": Evil()}), "can't be read as a model's weights"),
    ],
)
def test_weights_that_do_not_fit_are_told_and_never_run(tiny_base: Path, tmp_path: Path, change, message, capsys):
    directory = tmp_path / "changed"
    shutil.copytree(tiny_base, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    stored = load_file(tiny_base / "model.safetensors")
    change(stored)
    torch.save(stored, directory / "pytorch_model.bin")
    with pytest.raises(RefineError, match=message):
        load_base(directory, device="cpu")
    assert "code was run" not in capsys.readouterr().out


def test_fp16_is_refused_with_the_reason(tiny_base: Path):
    with pytest.raises(RefineError, match="no precision 'float16': T5's activations overflow fp16"):
        load_base(tiny_base, precision="float16")


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


def test_unknown_devices_are_refused(tiny_base: Path):
    for options in ({"device": "tpu"}, {"device": "cpu", "embedding_device": "disk"}):
        with pytest.raises(RefineError, match="expected cpu, cuda or cuda:1"):
            load_base(tiny_base, **options)
    with pytest.raises(RefineError, match="device must be cpu, cuda or cuda:1, found 'tpu'"):
        TrainingConfig(device="tpu")


def test_unknown_bases_are_refused(tmp_path: Path):
    with pytest.raises(RefineError, match="no built-in base 'builtin:none': expected builtin:mt5-mini"):
        load_base("builtin:none")
    with pytest.raises(RefineError, match="is no model directory"):
        load_base(tmp_path / "none")
    with pytest.raises(RefineError, match="is no local directory, and is not in the cache"):
        load_base("nobody/nothing")


def test_the_builtin_base_is_an_untied_mt5_in_the_official_layout():
    base = load_base("builtin:mt5-mini", device="cpu")
    assert base.model.config.model_type == "mt5"
    assert not torch.equal(base.model.lm_head.weight, base.model.shared.weight)
    first, last = base.vocabulary.sentinel_ids[0], base.vocabulary.sentinel_ids[-1]
    assert first - last == 99
    assert first < base.model.shared.num_embeddings
    from t5refine_peft.modeling.location import base_directory

    files = {path.name: path.stat().st_size for path in base_directory("builtin:mt5-mini").iterdir()}
    assert {"config.json", "spiece.model", "tokenizer_config.json", "model.safetensors", "card.json"} <= set(files)
    assert sum(files.values()) <= 28_000_000
