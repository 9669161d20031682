from __future__ import annotations

import json
import shutil
from pathlib import Path

import docx
import pytest
import torch
from typer.testing import CliRunner, Result

from t5refine_peft import AdapterConfig, RefineError, load_base
from t5refine_peft.cli.app import app
from t5refine_peft.modeling.lora import add_adapter, save_adapter


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    base = load_base(tiny_base, device="cpu", precision="float32")
    torch.manual_seed(0)
    model = add_adapter(base, AdapterConfig(rank=2))
    (directory / "heart").mkdir()
    save_adapter(model, directory / "heart")
    model.unload()
    return directory


@pytest.fixture
def restore(tiny_base: Path, adapters: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapters, tmp_path / "adapters")

    def run(*arguments: str, stdin: bytes | None = None) -> Result:
        options = ["--base", str(tiny_base), "--device", "cpu", "--max-gap-tokens", "3"]
        return CliRunner().invoke(app, ["restore", *arguments, *options], input=stdin)

    return run


def test_a_line_names_its_adapter_and_failures_are_told_at_the_end(restore, tmp_path: Path):
    rows = [{"text": "a ___", "adapter": "heart"}, {"text": "b ___", "adapter": "none"}, {"text": "c ___"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = restore("--file", "in.jsonl", "--output", "out.jsonl", "--candidates", "2")
    assert result.exit_code == 1
    told = [line for line in result.stderr.splitlines() if line.startswith("t5refine: ")]
    assert len(told) == 1
    assert told[0].startswith("t5refine: in.jsonl, line 2: no adapter 'none'")
    assert "1 of 3 lines could not be restored" in result.stderr
    first, bad, last = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (len(first["gaps"]), first["adapter"], bad["line"], len(last["gaps"])) == (1, "heart", 2, 1)
    assert len(first["gaps"][0]["candidates"]) == 2
    strict = restore("--file", "in.jsonl", "--output", "other.jsonl", "--strict")
    assert isinstance(strict.exception, RefineError)
    assert not (tmp_path / "other.jsonl").exists()


def test_a_page_a_term_list_and_counted_marks(restore, tmp_path: Path):
    (tmp_path / "in.txt").write_text("a <b> ___\nno gap\n")
    (tmp_path / "terms.txt").write_text("furosemide\n撤销权\n")
    result = restore("--file", "in.txt", "--html", "--terms", "terms.txt")
    assert result.exit_code == 0, result.output
    assert "a &lt;b&gt; <mark class=" in result.stdout
    assert ">furosemide</mark>" in result.stdout or ">撤销权</mark>" in result.stdout
    counted = restore("合同□□□生效", "--json", "--terms", "terms.txt", "--count-marks")
    assert json.loads(counted.stdout)["text"] == "合同撤销权生效"
    left = restore("-", "--min-score", "1", stdin=b"x ___\r\ny")
    assert left.stdout_bytes == b"x ___\r\ny"


def test_a_word_document(restore, tmp_path: Path):
    document = docx.Document()
    document.add_paragraph("takes ___ daily")
    document.save(tmp_path / "in.docx")
    result = restore("--file", "in.docx", "--output", "out.docx", "--beams", "2")
    assert result.exit_code == 0, result.output
    assert "1 gaps restored" in result.stderr
    assert "___" not in docx.Document(tmp_path / "out.docx").paragraphs[0].text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "--file", "in.txt"],
        ["a", "--json", "--html"],
        ["a", "--sample", "--beams", "2"],
        ["--file", "in.docx"],
    ],
)
def test_options_that_exclude_each_other(restore, arguments):
    assert restore(*arguments).exit_code == 2


def test_a_text_keeps_its_own_line_ends_and_bytes(restore):
    result = restore(b"caf\xe9 ___\r\n".decode("utf-8", "surrogateescape"))
    assert result.stdout_bytes.startswith(b"caf\xe9 ")
    assert result.stdout_bytes.endswith(b"\r\n\n")
    assert result.stdout_bytes.count(b"\n") == 2
