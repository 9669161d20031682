from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from typer.testing import CliRunner

from t5refine_peft import traps
from t5refine_peft.cli.app import app
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.modeling import assembly
from t5refine_peft.modeling.layers import QuantizedLinear
from t5refine_peft.offline import OfflineLoader


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
    assert {finding["trap"] for finding in found["traps"]} == set(traps._TRAPS)
    status = {finding["trap"]: finding["status"] for finding in found["traps"]}
    assert status["mT5's head is not its embedding"] == "handled"
    assert status["loss times accumulation"] == "handled"
    assert status["wo in 4-bit"] == "handled"
    assert "broken" not in status.values()


def test_kernels_are_hidden_from_bitsandbytes_and_so_no_trap(monkeypatch):
    monkeypatch.setattr(traps, "find_spec", lambda name: name)
    backend = import_module("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(backend, "__loader__", OfflineLoader(backend.__name__, str(backend.__file__)))
    assert traps._hub_kernels()[0] == "handled"
    monkeypatch.setattr(backend, "__loader__", None)  # imported before this library
    assert traps._hub_kernels()[0] == "broken"


def test_what_catches_a_run_is_broken(monkeypatch):
    """Each stands for a library that behaves in another way one day."""
    monkeypatch.setattr(DataLoaderShard, "set_epoch", lambda *_: None)
    assert traps._epochs()[0] == "broken"
    monkeypatch.setattr(QuantizedLinear, "weight", torch.zeros(1, dtype=torch.uint8))
    assert traps._quantised_wo()[0] == "broken"
    monkeypatch.setattr(
        assembly, "keep_ties_true", lambda model, tied: setattr(model.config, "tie_word_embeddings", tied)
    )
    assert traps._umt5()[0] == "broken"
    monkeypatch.setattr(Vocabulary, "encode", lambda self, _: SimpleNamespace(ids=np.array([self.sentinel_ids[3]])))
    assert traps._sentinels()[0] == "broken"


def test_a_broken_trap_is_told_and_ends_with_1(monkeypatch):
    def new_version() -> tuple[traps.Status, str]:
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(traps, "_TRAPS", {"a trap": new_version})
    ended = CliRunner().invoke(app, ["doctor"])
    assert ended.exit_code == 1
    assert "broken   a trap: TypeError: unexpected keyword" in ended.stdout
