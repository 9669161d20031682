from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, UMT5Config, UMT5ForConditionalGeneration

from t5refine_peft import RefineError, load_base
from t5refine_peft.modeling.exporting import check_export, export_ctranslate2
from t5refine_peft.modeling.probe import TEXTS


def test_in_fp32_the_exported_model_is_the_same(tiny_base: Path, tmp_path: Path):
    import ctranslate2

    parity = export_ctranslate2(tiny_base, tmp_path / "exported", quantization="float32")
    assert parity.tokens > 100
    assert parity.largest_difference < 1e-4
    base = load_base(tiny_base, device="cpu", precision="float32")
    ids = [*base.vocabulary.encode(TEXTS[0]).ids.tolist(), base.vocabulary.eos_id]
    said = base.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=1)
    pieces = base.vocabulary.pieces()
    pieces += [f"<unused_{row}>" for row in range(len(pieces), base.model.config.vocab_size)]
    translator = ctranslate2.Translator(str(tmp_path / "exported"), device="cpu")
    answer = translator.translate_batch([[pieces[i] for i in ids]], beam_size=1, max_decoding_length=12)
    assert answer[0].hypotheses[0] == [pieces[i] for i in said[0, 1:].tolist() if i != 1]


@pytest.mark.parametrize("kind", ["t5-tied", "t5-untied", "umt5"])
def test_any_t5_exports_with_its_own_scale_and_biases(kind: str, vocabulary, tokenizer_dir: Path, tmp_path: Path):
    shape = {
        "vocab_size": len(vocabulary) + 4,
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 16,
        "num_heads": 2,
        "num_layers": 2,
        "decoder_start_token_id": 0,
    }
    torch.manual_seed(1)
    if kind == "umt5":
        model = UMT5ForConditionalGeneration(UMT5Config(**shape))
    else:
        tied = kind == "t5-tied"
        activation = "relu" if tied else "gated-gelu"
        config = T5Config(**shape, feed_forward_proj=activation, tie_word_embeddings=tied)
        model = T5ForConditionalGeneration(config)
    if kind != "t5-tied":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn(shape["vocab_size"], 32) * 0.2)
    model.save_pretrained(tmp_path / "model")
    for file in tokenizer_dir.iterdir():
        shutil.copy(file, tmp_path / "model")
    assert load_base(tmp_path / "model", device="cpu").model.config.tie_word_embeddings is (kind != "t5-untied")
    parity = export_ctranslate2(tmp_path / "model", tmp_path / "exported", quantization="float32", texts=TEXTS[:4])
    assert parity.largest_difference < 1e-4
    assert parity.mean_log_difference < 1e-3


def test_int8_agrees_and_says_by_how_much(tiny_base: Path, tmp_path: Path):
    parity = export_ctranslate2(tiny_base, tmp_path / "exported")
    assert 0 < parity.mean_difference < 0.01
    assert parity.mean_log_difference < 0.1
    assert json.loads((tmp_path / "exported" / "parity.json").read_text())["tokens"] == parity.tokens
    sizes = [
        (path / name).stat().st_size
        for path, name in ((tmp_path / "exported", "model.bin"), (tiny_base, "model.safetensors"))
    ]
    assert sizes[0] < sizes[1] / 2


def test_logits_of_a_wrong_scale_are_found_and_nothing_is_written(tiny_base, tmp_path, monkeypatch):
    """CTranslate2's converter scales wherever the tie flag is set, which MT5Config does whatever the file says."""
    from ctranslate2.converters.transformers import MT5Loader

    right = MT5Loader.get_model_spec

    def scaled(self, model):
        model.config.tie_word_embeddings = True
        return right(self, model)

    monkeypatch.setattr(MT5Loader, "get_model_spec", scaled)
    with pytest.raises(RefineError, match=r"probabilities differ from those of .* nothing was written"):
        export_ctranslate2(tiny_base, tmp_path / "exported", quantization="float32")
    assert list(tmp_path.iterdir()) == []


def test_every_row_has_a_piece_of_its_own(vocabulary):
    pieces = vocabulary.pieces()
    assert len(pieces) == len(set(pieces)) == len(vocabulary)
    assert pieces[vocabulary.sentinel_ids[0]] == "▁<extra_id_0>"


def test_without_the_extra_or_with_something_there_it_says_so(tiny_base, tmp_path, monkeypatch):
    with pytest.raises(RefineError, match="is there already"):
        export_ctranslate2(tiny_base, tmp_path)
    with pytest.raises(RefineError, match=r"can't be converted for CTranslate2: .*not a valid quantization type"):
        export_ctranslate2(tiny_base, tmp_path / "exported", quantization="int3")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(RefineError, match=r"install the extra with `pip install 't5refine-peft\[export\]'`"):
        check_export(tmp_path / "exported")
