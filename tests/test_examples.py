from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import run_shell
from snippets import ROOT, in_little

from t5refine_peft.demo import texts

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator:
    """Run an example in an empty folder with two steps of training; give what it prints."""

    def call(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    with in_little():
        yield call


def test_a_domain_is_trained_in_ten_lines(run):
    assert "Restoration(text='The patient with heart failure takes " in run("train_a_domain.py")


def test_domains_are_swapped(run):
    printed = run("swap_domains.py").splitlines()
    assert len(printed) == 5
    assert printed[1].startswith("each its own: 出卖人应当交付")


def test_collator_and_callbacks_in_a_plain_trainer(run):
    assert "loss on the validation split: " in run("plain_trainer.py")
    assert Path("plain/adapter/adapter_model.safetensors").is_file()


def test_an_adapter_in_plain_peft(run):
    assert "<extra_id_0>" in run("plain_peft.py")


def test_a_folder_becomes_a_report(tmp_path: Path):
    script = (EXAMPLES / "folder_to_report.sh").read_text(encoding="utf-8")
    (tmp_path / "notes").mkdir()
    with in_little():
        documents = texts.training_documents(texts.load_domain("cardiology"))
        (tmp_path / "notes" / "cases.txt").write_text("\n".join(documents), encoding="utf-8")
        done = run_shell(script, tmp_path, "notes", "cardiology")
    assert done.returncode == 0, done.stderr
    assert "<title>cardiology" in (tmp_path / "cardiology-report.html").read_text(encoding="utf-8")
    assert (tmp_path / "cardiology.zip").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tested on POSIX")
def test_two_processes_train_one_adapter(tmp_path: Path):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    done = subprocess.run(
        [sys.executable, *launch, str(EXAMPLES / "several_gpus.py")],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"TrainResult(") == 1


def test_every_example_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.iterdir():
        assert f'"{example.name}"' in tested
