from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from t5refine_peft import AdapterConfig
from t5refine_peft.modeling.lora import add_adapter, linear_layers, load_adapted, reload_adapter, save_adapter


def test_every_linear_layer_but_the_head(base):
    assert linear_layers(base) == ["k", "o", "q", "v", "wi_0", "wi_1", "wo"]
    model = add_adapter(base, AdapterConfig(rank=4))
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all("lora_" in name for name in trained)
    linear = 2 * (4 + 3) + 2 * (8 + 3)
    assert len(trained) == 2 * linear


def test_the_saved_adapter_is_small_and_loads_in_plain_peft(base, tiny_base: Path, tmp_path: Path):
    model = add_adapter(base, AdapterConfig(rank=4, alpha=8, dropout=0.0))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    save_adapter(model, tmp_path)
    reload_adapter(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert not any("shared" in name or "lm_head" in name for name in stored)

    plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(tiny_base, dtype=torch.float32), tmp_path)
    ids, labels = torch.arange(5, 25)[None], torch.arange(30, 40)[None]
    with torch.inference_mode():
        ours = model.eval()(input_ids=ids, labels=labels).logits
        theirs = plain.eval()(input_ids=ids, labels=labels).logits
        with model.disable_adapter():
            alone = model(input_ids=ids, labels=labels).logits
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, alone, atol=1e-3)


def test_neither_training_nor_loading_warns_of_what_is_between_the_libraries(base, tmp_path: Path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = add_adapter(base, AdapterConfig(rank=2))
        save_adapter(model, tmp_path)
        load_adapted(model.unload(), tmp_path)
    assert [str(warning.message) for warning in told] == []
