from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from shell import run_here


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path: Path):
    """Run `t5refine ...` in this process, in the test's own directory."""

    def call(*arguments: object, stdin: bytes = b"") -> Ended:
        code, output, errors = run_here(tmp_path, list(map(str, arguments)), stdin)
        return Ended(code, output.decode(), errors.decode())

    return call


def test_help_is_quick_and_imports_no_torch():
    command = [sys.executable, "-c", "from t5refine_peft.cli.app import main; main()", "--help"]
    code = "import sys, t5refine_peft.cli.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    seconds = []
    for _ in range(5):
        before = os.times()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        after = os.times()  # the child's own seconds: a busy machine makes it wait, not work
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert result.returncode == 0
    assert {"demo", "train", "restore"} <= set(result.stdout.split())
    assert min(seconds) < 0.5


def test_train_then_restore_files_streams_and_json(run, tiny_base: Path, corpus, terms, tmp_path: Path):
    (tmp_path / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    (tmp_path / "terms.txt").write_text("\n".join(terms), encoding="utf-8")
    trained = run(
        "train", "corpus.txt", "--terms", "terms.txt", "--domain", "heart", "--base", tiny_base, "--max-steps", "2",
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["steps"] == 2
    assert (tmp_path / "adapters" / "heart" / "adapter_model.safetensors").stat().st_size == result["adapter_bytes"]

    options = ["--adapter", "heart", "--device", "cpu"]  # the base is the one that its card names
    text = "Ｔhe  ＿＿ patient\r\n合同□生效\n"
    streamed = run("restore", "-", *options, stdin=text.encode())
    assert streamed.returncode == 0, streamed.stderr
    restored = streamed.stdout
    assert restored.startswith("Ｔhe  ")
    assert " patient\r\n合同" in restored
    assert restored.endswith("生效\n")

    rows = [{"id": 7, "inputs": "takes <extra_id_0> for"}, {"text": "no gap"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    filled = run("restore", "--file", "in.jsonl", "--output", "out.jsonl", *options)
    assert filled.returncode == 0, filled.stderr
    assert filled.stdout == ""
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    gap = first["gaps"][0]
    assert first["id"] == 7
    assert first["text"][gap["start"] : gap["end"]] == gap["text"]
    assert (second["text"], second["gaps"]) == ("no gap", [])

    question = {"inputs": "takes <extra_id_0> for", "targets": "<extra_id_0> furosemide"}
    (tmp_path / "test.jsonl").write_text(json.dumps(question))
    asked = ["evaluate", "--data", "test.jsonl", "--base", tiny_base, "--adapter", "heart", "--terms", "terms.txt"]
    scored = run(*asked, "--device", "cpu", "--json", "--output", "report.html")
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)
    assert [system["system"] for system in found["systems"]] == ["base", "heart"]
    assert found["systems"][1]["exact_match"]["count"] == 1
    assert "Most often missed by" in (tmp_path / "report.html").read_text(encoding="utf-8")
    table = run(*asked, "--device", "cpu")
    assert table.returncode == 0, table.stderr
    assert "1 gaps" in table.stdout
    assert "heart - base: " in table.stdout

    one = run("restore", "a ??? b", "--gap", "???", "--json", "--quantization", "nf4", *options)
    assert len(json.loads(one.stdout)["gaps"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.txt", "--domain", "x"], "none.txt does not exist"),
        (["train", "broken.jsonl", "--domain", "x"], "broken.jsonl, line 1: expected a JSON object"),
        (["train", "empty.txt", "--domain", "x"], "empty.txt is empty"),
        (["train", "good.txt", "--domain", "x", "--terms", "blank.txt"], "blank.txt: the glossary holds no term"),
        (["train", "good.txt", "--domain", "x", "--rank", "0"], "rank must be at least 1, found 0"),
        (["train", "good.txt", "--domain", "x", "--quantization", "fp4"], "no quantization 'fp4'"),
        (["restore", "a ___", "--quantization", "fp4"], "no quantization 'fp4'"),
        (["restore", "a ___", "--adapter", "none"], "no adapter 'none'"),
        (["evaluate", "--data", "none.jsonl"], "none.jsonl can't be read"),
        (["evaluate", "--data", "broken.jsonl"], "broken.jsonl, line 1: Expecting property name"),
        (["restore", "--file", "none.txt"], "none.txt can't be read"),
        (["restore", "--file", "broken.jsonl"], "broken.jsonl, line 1: expected a JSON object"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(run, tiny_base: Path, tmp_path: Path, arguments: list[str], message: str):
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "good.txt").write_text("The patient takes furosemide.\n" * 3)
    result = run(*arguments, "--base", tiny_base, "--device", "cpu")
    errors = [line for line in result.stderr.splitlines() if line.startswith("t5refine: ")]
    assert result.returncode == 1, result.stderr
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "adapters").exists()


def test_wrong_usage_is_exit_2(run):
    assert run("train").returncode == 2
    assert run("restore").returncode == 2
