from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from t5refine_peft import RefineError, plan_memory
from t5refine_peft.cli.app import app
from t5refine_peft.config_file.values import parse_bytes


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_it_prints_each_part_the_total_and_a_table_of_all_sizes():
    text = run("--base", "google/mt5-xl", "--memory", "6GB")
    assert text.startswith("google/mt5-xl: fits, ")
    for part in ("linear", "head", "adapter", "gradient", "optimizer", "checkpoint", "live layer", "loss", "context"):
        assert f"  {part} " in text
    rows = [line.split() for line in text.partition("all sizes of mT5")[2].splitlines()[2:]]
    assert [row[0].removeprefix("google/mt5-") for row in rows] == ["small", "base", "large", "xl", "xxl"]
    assert rows[3][1:2] + rows[3][3:6] == ["fits", "int8", "int8", str(plan_memory("google/mt5-xl", 6 * 10**9).batch)]
    assert rows[4][1:4] == ["does", "not", "fit"]


def test_json_holds_every_part_and_the_settings():
    found = json.loads(
        run("--base", "google/mt5-xl", "--memory", "6GB", "--quantization", "nf4", "--batch", "1", "--json")
    )
    assert found["fits"]
    assert (found["batch"], found["quantization"]["linear"], found["optimizer"]) == (1, "nf4", "paged_adamw_8bit")
    assert found["budget_bytes"] == 6 * 10**9
    parts = [
        value
        for name, value in found.items()
        if name.endswith("_bytes") and name[:5] not in ("total", "budge", "host_")
    ]
    assert found["total_bytes"] < sum(parts) < found["total_bytes"] + 300 * 2**20


def test_amounts_of_memory():
    assert parse_bytes("6GB") == 6 * 10**9
    assert parse_bytes(" 5.5 GiB ") == int(5.5 * 2**30)
    assert parse_bytes("700") == 700
    for wrong in ("", "6 giants", "-1GB", "GB", "1e9"):
        with pytest.raises(RefineError, match="is no amount of memory: expected a number and a unit, such as 6GB"):
            parse_bytes(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--device", "tpu"], "no device 'tpu'"), (["--quantization", "int3"], "no quantization 'int3'")],
)
def test_unknown_choices_are_named(arguments, message):
    with pytest.raises(RefineError, match=message):
        run("--memory", "6GB", *arguments)
