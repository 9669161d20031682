from __future__ import annotations

import json

from typer.testing import CliRunner

from t5refine_peft import traps
from t5refine_peft.cli.app import app


def test_the_command_tells_the_machine_and_tries_each_trap():
    ended = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(ended.stdout)
    assert ended.exit_code == 0
    assert found["healthy"] is True
    assert found["versions"]["torch"].startswith("2.")
    assert found["memory_bytes"] > 10**9
    assert set(found["cpu_milliseconds"]) == {"float32", "bfloat16"}
    assert {finding["trap"] for finding in found["traps"]} == set(traps._TRAPS)
    status = {finding["trap"]: finding["status"] for finding in found["traps"]}
    assert status["mT5's head is not its embedding"] == "handled"
    assert status["loss times accumulation"] == "handled"
    assert "broken" not in status.values()


def test_a_broken_trap_is_told_and_ends_with_1(monkeypatch):
    def new_version() -> tuple[traps.Status, str]:
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(traps, "_TRAPS", {"a trap": new_version})
    ended = CliRunner().invoke(app, ["doctor"])
    assert ended.exit_code == 1
    assert "broken   a trap: TypeError: unexpected keyword" in ended.stdout
