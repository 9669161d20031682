from __future__ import annotations

import ast
import inspect
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from t5refine_peft import (
    AdapterConfig,
    CorruptionConfig,
    Quantization,
    RefineError,
    RunConfig,
    TrainingConfig,
    config,
    load_config,
    save_config,
)
from t5refine_peft.config_file import config_text

CONFIGS = [RunConfig, TrainingConfig, AdapterConfig, CorruptionConfig, Quantization]
CHANGED = RunConfig(
    corpus=(Path("notes"), Path("/texts/more.txt")),
    domain='heart "and" 心',
    terms=Path("terms.txt"),
    base="google/mt5-xl",
    rescue_dir=Path("/spare"),
    report_examples=True,
    training=TrainingConfig(
        adapter=AdapterConfig(rank=8, dropout=0.0),
        corruption=CorruptionConfig(mask_share=0.15, touching="joined"),
        learning_rate=3e-4,
        max_steps=100,
        micro_batch=4,
        memory_bytes=6 * 10**9,
        report_to=("tensorboard",),
        quantization=Quantization.nf4(head="nf4"),
        device="cpu",
    ),
)


@pytest.mark.parametrize("run", [RunConfig(), CHANGED], ids=["default", "changed"])
def test_what_is_written_is_read_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: RunConfig):
    monkeypatch.chdir(tmp_path)
    save_config(run, "run.toml")
    assert load_config("run.toml") == run
    save_config(run, "sub/run.toml")
    read = load_config("sub/run.toml")
    assert read.training == run.training
    assert [path.resolve() for path in read.corpus] == [path.resolve() for path in run.corpus]
    assert read.adapters_dir.resolve() == tmp_path / "adapters"


def test_every_key_is_there_with_its_default_and_the_words_below_its_field():
    lines = config_text(RunConfig()).splitlines()
    assert max(map(len, lines)) <= 100
    words = " ".join(line.removeprefix("#").strip() for line in lines)
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef) and node.name != "Quantization":
            below = [n.value.value for n in node.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
            assert len(below) > 1
            for text in below if node.name not in ("RunConfig", "TrainingConfig") else below[1:]:
                assert " ".join(text.split()) in words
    names = {field.name for kind in CONFIGS for field in fields(kind)}
    keys = {line.removeprefix("# ").split(" =")[0].split(".")[-1] for line in lines if " =" in line}
    tables = {line.strip("[]").split(".")[-1] for line in lines if line.startswith("[")}
    assert keys | tables == names
    told = tomllib.loads("\n".join(lines))
    assert told["training"]["batch"] == 16
    assert told["training"]["adapter"] == {"rank": 16, "alpha": 16.0, "dropout": 0.05}


def test_a_key_without_a_value_can_be_given_one_where_it_stands(tmp_path: Path):
    text = config_text(RunConfig())
    for line, value in {
        '# quantization =  # "none", "int8", "nf4" or a table': 'quantization = "nf4"',
        "# max_steps =  # a whole number": "max_steps = 7",
        "# corpus =  # a list of paths": 'corpus = ["notes"]',
    }.items():
        assert line in text
        text = text.replace(line, value)
    (tmp_path / "run.toml").write_text(text)
    run = load_config(tmp_path / "run.toml")
    assert (run.training.quantization, run.training.max_steps) == (Quantization.nf4(), 7)
    assert run.corpus == (tmp_path / "notes",)


def test_a_changed_value_tells_the_default():
    assert "its parameters grow in proportion. Default: 16." in config_text(CHANGED).lower().replace(
        "default", "Default"
    )


def test_a_base_beside_the_file_is_taken_for_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "own").mkdir(parents=True)
    run = replace(CHANGED, base="models/own")
    assert 'base = "./models/own"' in config_text(run)
    assert 'base = "../models/own"' in config_text(run, folder="sub")
    save_config(run, "sub/run.toml")
    assert Path(load_config("sub/run.toml").base).resolve() == tmp_path / "models" / "own"


def test_a_place_that_takes_no_file_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(RefineError, match="can't be written"):
        save_config(CHANGED, tmp_path / "file" / "run.toml")
