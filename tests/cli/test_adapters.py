from __future__ import annotations

import json
from pathlib import Path

import pytest
from shell import run_here


@pytest.fixture
def run(registry, monkeypatch: pytest.MonkeyPatch):
    """`t5refine adapters ...` in a directory with `adapters/heart` and `adapters/law`; its exit code and output."""
    monkeypatch.chdir(registry.directory.parent)

    def call(*arguments: object) -> tuple[int, str, str]:
        code, output, errors = run_here(Path(), ["adapters", *map(str, arguments)])
        return code, output.decode(), errors.decode()

    return call


def test_list_and_show(run, tiny_base: Path):
    code, out, _ = run("list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["heart", "2"], ["law", "4"]]
    assert "50.0%" in out
    Path("adapters/law/card.json").write_text("[")
    heart, law = json.loads(run("list", "--json")[1])
    assert (heart["rank"], heart["base"], heart["fault"]) == (2, str(tiny_base), None)
    assert "card.json is broken" in law["fault"]
    assert "broken: " in run("list")[1]
    shown = json.loads(run("show", "heart", "--json")[1])
    assert (shown["rank"], shown["card"]["domain"]) == (2, "heart")
    Path("adapters/heart/card.json").write_text(json.dumps({"base": "\u001b[2Jx\u009b1m", "metrics": {"a": 1}}))
    code, out, _ = run("show", "heart")
    assert code == 0
    assert out.replace("\n", "").isprintable()
    assert '{"a": 1}' in out
    assert run("list", "--adapters-dir", "none") == (0, "", "none holds no adapter\n")


def test_half_characters_in_a_card_are_shown_as_json_spells_them(run, registry):
    card = registry.find("heart") / "card.json"
    card.write_text('{"base": "\\ud83d"}')
    code, out, _ = run("show", "heart", "--json")
    assert (code, json.loads(out)["card"]) == (0, {"base": "\ud83d"})


def test_verify_pack_remove_unpack(run, tiny_base: Path):
    code, out, _ = run("verify", "heart", "--base", tiny_base)
    assert code == 0
    assert "heart is sound: 36 layers of rank 2" in out
    assert f"fits {tiny_base}: weights, tokenizer and shapes" in out
    assert "not checked: give --base" in run("verify", "heart")[1]
    assert json.loads(run("verify", "heart", "--json")[1])["recorded"] is True
    assert run("pack", "heart")[:2] == (0, "heart.zip\n")
    assert run("remove", "heart") == (0, "", "removed heart from adapters\n")
    assert run("unpack", "heart.zip")[:2] == (0, "adapters/heart\n")
    assert run("unpack", "heart.zip", "--domain", "again")[:2] == (0, "adapters/again\n")
    assert run("verify", "again", "--base", tiny_base)[0] == 0


def test_combine_and_merge(run, tiny_base: Path):
    code, out, err = run("combine", "heart=0.7", "law=-0.4", "--domain", "both", "--json")
    assert code == 0, err
    assert json.loads(out)["rank"] == 6
    code, out, _ = run("merge", "both", "--output", "merged", "--export", "exported", "--device", "cpu", "--json")
    made = json.loads(out)
    assert code == 0
    assert made["drift"]["places"] > 100
    assert made["parity"]["tokens"] > 100
    assert Path("merged/model.safetensors").is_file()
    assert Path("exported/model.bin").is_file()
    code, out, _ = run("merge", "law", "--output", "again", "--base", tiny_base, "--device", "cpu")
    assert code == 0
    assert "merged, bf16" in out
    assert "same first choice" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "hart"], "did you mean heart?"),
        (["verify", "../x"], "can't name an adapter"),
        (["verify", "heart", "--base", "builtin:mt5-mini"], "was trained on the base"),
        (["remove", "none"], "no adapter 'none'"),
        (["pack", "../x"], "can't name an adapter"),
        (["unpack", "none.zip"], "none.zip can't be read: No such file or directory"),
        (["unpack", "adapters/heart/card.json"], "is no zip archive that can be read"),
        (["combine", "heart=1", "--domain", "x"], "expected two adapters or more, found heart"),
        (["combine", "heart", "law=1", "--domain", "x"], "expected NAME=WEIGHT such as cardiology=0.5, found 'heart'"),
        (["combine", "heart=1,5", "law=1", "--domain", "x"], "expected NAME=WEIGHT"),
        (["combine", "heart=1", "heart=1", "--domain", "x"], "'heart' is given twice"),
        (["combine", "heart=1", "law=1", "--domain", "x", "--method", "lineal"], "did you mean linear?"),
        (["merge", "heart", "--output", "adapters"], "adapters is there already"),
        (["merge", "heart", "--output", "x", "--export", "adapters"], "adapters is there already"),
    ],
)
def test_bad_input_is_one_line_and_exit_1_and_changes_nothing(run, arguments: list[str], message: str):
    before = sorted(Path().rglob("*"))
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if line.startswith("t5refine: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(Path().rglob("*")) == before


def test_wrong_usage_is_exit_2(run):
    for arguments in ([], ["nothing"], ["show"], ["combine", "--domain", "x"], ["merge", "heart"]):
        assert run(*arguments)[0] == 2
