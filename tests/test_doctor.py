from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, T5Tokenizer
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from typer.testing import CliRunner

from t5refine_peft.cli.app import app
from t5refine_peft.corpus import tokenization
from t5refine_peft.corpus.tokenization import Encoding, Vocabulary
from t5refine_peft.modeling import assembly, forward, lora
from t5refine_peft.modeling.layers import QuantizedLinear
from t5refine_peft.offline import OfflineLoader
from t5refine_peft.traps import numbers, tokens, training, trying, weights
from t5refine_peft.traps.finding import Status


def test_the_command_tells_the_machine_and_tries_each_trap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(ended.stdout)
    assert ended.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    assert found["healthy"] is True
    assert found["versions"]["torch"].startswith("2.")
    assert found["memory_bytes"] > 10**9
    assert set(found["cpu_milliseconds"]) == {"float32", "bfloat16"}
    assert {finding["trap"] for finding in found["traps"]} == set(trying.ATTEMPTS)
    status = {finding["trap"]: finding["status"] for finding in found["traps"]}
    assert status["mT5's head is not its embedding"] == "handled"
    assert status["loss times accumulation"] == "handled"
    assert status["wo in 4-bit"] == "handled"
    assert "broken" not in status.values()


def test_kernels_are_hidden_from_bitsandbytes_and_so_no_trap(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: name)
    backend = import_module("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(backend, "__loader__", OfflineLoader(backend.__name__, str(backend.__file__)))
    assert weights._hub_kernels()[0] == "handled"
    monkeypatch.setattr(backend, "__loader__", None)  # imported before this library
    assert weights._hub_kernels()[0] == "broken"


def double_norms(module: nn.Module) -> None:
    if isinstance(module, MT5LayerNorm):
        module.weight.data *= 2


def test_what_catches_a_run_is_broken(monkeypatch):
    """Each stands for a library that behaves in another way one day."""
    monkeypatch.setattr(DataLoaderShard, "set_epoch", lambda *_: None)
    assert training._epochs()[0] == "broken"
    monkeypatch.setattr(QuantizedLinear, "weight", torch.zeros(1, dtype=torch.uint8))
    assert weights._quantised_wo()[0] == "broken"
    monkeypatch.setattr(
        assembly, "keep_ties_true", lambda model, tied: setattr(model.config, "tie_word_embeddings", tied)
    )
    assert weights._umt5()[0] == "broken"
    packed = forward.packed_forward
    monkeypatch.setattr(forward, "packed_forward", lambda model: packed(model.apply(double_norms)))
    assert numbers._attention()[0] == "broken"
    monkeypatch.setattr(lora, "reload_adapter", lambda *_: None)
    assert training._best_weights()[0] == "broken"
    monkeypatch.setattr(lora, "get_peft_model_state_dict", lambda *_, **__: {"shared.weight": torch.zeros(1)})
    assert training._embedding_saved()[0] == "broken"
    monkeypatch.setattr(PeftModel, "set_adapter", lambda *_: None)
    assert training._mixed_adapters()[0] == "broken"
    monkeypatch.setattr(Vocabulary, "encode", lambda *_: Encoding(*np.zeros((3, 4), dtype=np.int32)))
    assert tokens._offsets()[0] == "broken"
    monkeypatch.setattr(tokenization, "_sentinel_ids", lambda *_: tuple(range(100)))
    assert tokens._sentinel_ids()[0] == "broken"
    monkeypatch.setattr(Vocabulary, "encode", lambda self, _: SimpleNamespace(ids=np.array([self.sentinel_ids[3]])))
    assert tokens._sentinels()[0] == "broken"


def test_a_trap_that_is_gone_is_ok(monkeypatch):
    """Each stands for a library that has mended it."""
    monkeypatch.setattr(T5Tokenizer, "decode", lambda *_, **__: "\uff34he  \uff12 mg")
    assert tokens._sentinels_decoded()[0] == tokens._offsets()[0] == "ok"
    monkeypatch.setattr(T5Tokenizer, "convert_tokens_to_ids", lambda *_: tokens._vocabulary().sentinel_ids[0])
    assert tokens._sentinel_ids()[0] == "ok"
    monkeypatch.setattr(T5Tokenizer, "__len__", lambda _: 0)
    assert tokens._ids_past_the_vocabulary()[0] == "ok"
    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", lambda _: None)
    assert numbers._checkpointing()[0] == "ok"
    monkeypatch.setattr(Accelerator, "prepare_model", lambda *_: None)
    assert weights._four_bit_offload()[0] == "ok"


def test_a_broken_trap_is_told_and_ends_with_1(monkeypatch):
    def new_version() -> tuple[Status, str]:
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(trying, "ATTEMPTS", {"a trap": new_version})
    ended = CliRunner().invoke(app, ["doctor"])
    assert ended.exit_code == 1
    assert "broken   a trap: TypeError: unexpected keyword" in ended.stdout
