from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from t5refine_peft import Quantization, RefineError, RunConfig, TrainingConfig, load_config
from t5refine_peft.cli.app import app


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_the_defaults_as_a_file_that_can_be_read(place: Path):
    (place / "run.toml").write_text(run())
    assert load_config("run.toml") == RunConfig()


def test_it_writes_what_fits_and_what_is_trained_on(place: Path):
    arguments = ["--terms", "terms.txt", "--domain", "heart", "--base", "google/mt5-xl", "--memory", "6GB"]
    assert run("notes", *arguments, "--output", "sub/heart.toml") == ""
    found = load_config("sub/heart.toml")
    assert found.training == TrainingConfig(quantization=Quantization.int8(), micro_batch=16, memory_bytes=6 * 10**9)
    assert (found.domain, found.base) == ("heart", "google/mt5-xl")
    assert found.corpus[0].resolve() == place / "notes"
    assert found.terms.resolve() == place / "terms.txt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "1GB", "--base", "google/mt5-xl"], "--memory: google/mt5-xl needs "),
        (["--memory", "6"], "--memory: google/mt5-base needs "),
        (["--quantization", "int3"], "--quantization: no quantization 'int3'"),
        (["--output", "there.toml"], r"--output: there\.toml is there already: choose another name"),
    ],
)
def test_an_error_names_the_option(place: Path, arguments: list[str], message: str):
    (place / "there.toml").touch()
    with pytest.raises(RefineError, match=message):
        run(*arguments)
    assert (place / "there.toml").read_text() == ""
