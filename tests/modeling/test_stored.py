from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_bases import write_base

from t5refine_peft import AdapterConfig, Quantization, RefineError, load_base
from t5refine_peft.modeling.base import save_quantized
from t5refine_peft.modeling.lora import add_adapter

IDS = torch.arange(5, 25)[None]


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize("scheme", [Quantization.nf4(), Quantization.nf4(head="nf4", embedding="nf4")], ids=str)
def test_a_saved_base_needs_its_source_no_more(kind, scheme, tmp_path: Path, tokenizer_dir: Path, vocabulary):
    source, saved = tmp_path / "source", tmp_path / "saved"
    write_base(source, tokenizer_dir, kind=kind, rows=len(vocabulary) + 12)
    base = load_base(source, device="cpu", precision="float32", quantization=scheme)
    save_quantized(base, saved)
    shutil.rmtree(source)
    again = load_base(saved, device="cpu", precision="float32")
    assert again.quantization == scheme
    assert again.fingerprint == base.fingerprint  # so its adapters fit
    logits = [b.model(input_ids=IDS, decoder_input_ids=IDS).logits for b in (base, again)]
    assert torch.equal(*logits)
    stored = sum(tensor.nbytes for tensor in (*base.model.parameters(), *base.model.buffers()))
    assert (saved / "quantized.safetensors").stat().st_size < stored + 40_000
    if kind == "t5" and scheme.head == scheme.embedding:
        assert again.model.shared.matrix is again.model.lm_head.matrix


def test_what_can_not_be_saved_or_loaded_is_told(tiny_base: Path, tmp_path: Path):
    with pytest.raises(RefineError, match="is not quantised: load it with a quantization"):
        save_quantized(load_base(tiny_base, device="cpu"), tmp_path / "x")
    base = load_base(tiny_base, device="cpu", quantization=Quantization.int8())
    saved = tmp_path / "saved"
    save_quantized(base, saved)
    with pytest.raises(RefineError, match=r"was saved with .*int8.*, not with .*nf4.*; leave the quantization out"):
        load_base(saved, device="cpu", quantization=Quantization.nf4())
    assert load_base(saved, device="cpu", quantization=Quantization.int8()).quantization.linear == "int8"
    record = json.loads((saved / "quantization.json").read_text())
    (saved / "quantization.json").write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(RefineError, match=r"quantization\.json has format 2: this version reads 1"):
        load_base(saved, device="cpu")
    (saved / "quantization.json").write_text("{")
    with pytest.raises(RefineError, match=r"quantization\.json is broken"):
        load_base(saved, device="cpu")
    add_adapter(base, AdapterConfig(rank=2))
    with pytest.raises(RefineError, match="the base has adapters on it"):
        save_quantized(base, tmp_path / "y")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()
