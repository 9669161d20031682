"""Configuration file, dry run and offline work, on one trained adapter."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from sockets import forbidden_sockets
from typer.testing import CliRunner

from t5refine_peft import AdapterConfig, RefineError, TrainingConfig, load_config
from t5refine_peft.cli.app import app, main
from t5refine_peft.cli.settings import run_config

CONFIG = """
corpus = ["corpus.txt"]
domain = "heart"
terms = "terms.txt"
base = "./base"

[training]
max_steps = 9
batch = 4
device = "cpu"
quantization = "int8"
adapter.rank = 2
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def run(*arguments: object) -> Answer:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, corpus, terms) -> Path:
    """A folder with texts, terms, base and run.toml."""
    where = tmp_path_factory.mktemp("place")
    (where / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    (where / "terms.txt").write_text("\n".join(terms), encoding="utf-8")
    (where / "run.toml").write_text(CONFIG)
    shutil.copytree(tiny_base, where / "base")
    return where


@pytest.fixture(scope="module")
def verbs(place: Path) -> dict[str, Answer]:
    """What each verb answered, offline, from another folder than the file's."""
    base = ["--base", place / "base", "--offline"]
    adapter = ["--adapter", "heart", "--adapters-dir", place / "adapters", "--device", "cpu"]
    prepared = place / "prepared"
    with pytest.MonkeyPatch.context() as patch, forbidden_sockets() as asked:
        patch.chdir(place.parent)
        patch.delenv("HF_HUB_OFFLINE")
        answers = {
            "prepare": run(
                "prepare", place / "corpus.txt", "--terms", place / "terms.txt", "--output", prepared, "--cache-dir",
                place / "cache", "--processes", 1, *base,
            ),
            "train": run("train", "--config", place / "run.toml", "--max-steps", 2, "--offline", "--json"),
            "evaluate": run("evaluate", "--data", prepared, "--json", *adapter, *base),
            "restore": run("restore", "takes ___ for", "--json", *adapter, *base),
        }  # fmt: skip
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert asked == []
    return answers


def test_every_verb_works_with_sockets_forbidden(verbs):
    assert [answer.code for answer in verbs.values()] == [0, 0, 0, 0]
    assert json.loads(verbs["train"].out)["steps"] == 2
    assert [system["system"] for system in json.loads(verbs["evaluate"].out)["systems"]] == ["base", "heart"]
    assert len(json.loads(verbs["restore"].out)["gaps"]) == 1


def test_a_socket_that_is_opened_is_seen():
    with forbidden_sockets() as asked, pytest.raises(OSError, match="an address was asked for"):
        urllib.request.urlopen("http://localhost/", timeout=1)
    assert asked == ["address ('localhost', 80)"]


@pytest.mark.usefixtures("verbs")
def test_the_command_line_wins_and_the_resolved_configuration_is_saved_to_be_used_again(place: Path):
    saved = load_config(place / "adapters" / "heart" / "training.toml")
    assert (saved.training.max_steps, saved.training.batch, saved.training.adapter.rank) == (2, 4, 2)
    assert saved.training.quantization.linear == "int8"
    card = json.loads((place / "adapters" / "heart" / "card.json").read_text())
    assert card["config"]["adapter"] == {"rank": 2, "alpha": 16.0, "dropout": 0.05}
    assert card["config"]["max_steps"] == 2
    assert [path.resolve() for path in saved.corpus] == [place / "corpus.txt"]
    assert saved.terms.resolve() == place / "terms.txt"
    assert Path(saved.base).resolve() == place / "base"
    assert (saved.adapters_dir.resolve(), saved.runs_dir.resolve()) == (place / "adapters", place / "runs")
    assert saved.domain == "heart"


@pytest.mark.usefixtures("verbs")
def test_a_dry_run_tells_what_a_run_would_take_and_writes_nothing(place: Path, monkeypatch):
    monkeypatch.chdir(place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    config = ["train", "--config", "adapters/heart/training.toml", "--max-steps", "300", "--dry-run"]
    text = run(*config).out
    found = json.loads(run(*config, "--memory", "1GB", "--json").out)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert text.count("tokens masked") == 5
    assert text.count("  terms: ") == 5
    assert "furosemide" in text
    assert "memory, planned" in text
    assert "300 of " in text
    assert text.endswith("nothing was written\n")
    assert found["plan"]["fits"]
    assert found["plan"]["budget_bytes"] == 10**9
    assert len(found["step_seconds"]) == 2
    assert found["steps"] == 300
    assert found["evaluations"] == 10
    steps, evaluations = found["seconds_a_step"] * 300, found["evaluation_seconds"] * 10
    assert found["total_seconds"] == pytest.approx(steps + evaluations)
    assert 0 < found["seconds_a_step"] < max(found["step_seconds"]) * 4
    assert found["memory_bytes"] > 2**20
    assert all("<extra_id_0>" in passage["inputs"] for passage in found["passages"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0", "--epochs", "-1"], "--epochs must be above 0, found -1.0"),
        (["--rank", "0", "--epochs", "-1"], "--rank must be at least 1, found 0"),
        (["--quantization", "fp4"], "--quantization: no quantization 'fp4': expected none, int8 or nf4"),
        (["--memory", "much"], "--memory: 'much' is no amount of memory"),
        (["--config", "none.toml"], "none.toml can't be read"),
        (["--base", "nobody/nothing"], "nobody/nothing is no local directory, and is not in the cache"),
        (["--base", "nobody/nothing"], "all that --offline (or HF_HUB_OFFLINE) allows; run once without it, or give"),
    ],
)
def test_an_error_names_the_option_to_change(place: Path, monkeypatch, capsys, arguments: list[str], message: str):
    monkeypatch.chdir(place)
    given = [] if "--config" in arguments else ["--config", "run.toml"]
    monkeypatch.setattr(sys, "argv", ["t5refine", "train", *given, "--offline", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5refine: ")]
    assert ended.value.code == 1
    assert len(errors) == 1
    assert message in errors[0]


def test_what_neither_file_nor_command_line_gives_is_asked_for(tmp_path: Path):
    (tmp_path / "run.toml").write_text("[training]\nepochs = 1\n")
    for arguments, message in {
        ("train",): "give the CORPUS",
        ("train", "texts.txt"): "--domain",
        ("train", "texts.txt", "--config", tmp_path / "run.toml"): "--domain",
        ("train", "texts.txt", "--domain", "x", "--dry-run", "--resume"): "either --dry-run or --resume",
    }.items():
        answer = run(*arguments)
        assert answer.code == 2
        assert message in " ".join(answer.err.replace("│", " ").split())


def test_epochs_that_are_typed_win_over_the_files_steps(place: Path):
    assert run_config(place / "run.toml", None, {}).training.max_steps == 9
    training = run_config(place / "run.toml", None, {"--epochs": 2.0}).training
    assert (training.epochs, training.max_steps) == (2.0, None)
    assert run_config(place / "run.toml", None, {"--epochs": 2.0, "--max-steps": 3}).training.max_steps == 3


def test_python_takes_the_file_too(place: Path):
    arguments = load_config(place / "run.toml").train_arguments()
    assert arguments["corpus"] == [place / "corpus.txt"]
    assert arguments["config"].adapter == AdapterConfig(rank=2)
    assert arguments["config"].epochs == TrainingConfig().epochs
    (place / "faulty.toml").write_text("epochs = 1\n[training]\nrank = 3\n")
    with pytest.raises(RefineError, match=r"line 1: epochs .* training\.epochs\?; line 3: training\.rank .*adapter"):
        load_config(place / "faulty.toml")
