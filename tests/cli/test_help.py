"""What each verb's help promises: an example that is right, completion, and a look for terminals and for pipes."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from t5refine_peft.cli.app import app
from t5refine_peft.cli.tables import print_table

COMMAND = typer.main.get_command(app)


def verbs(group: Any = COMMAND, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*above, name))
        else:
            yield (*above, name)


VERBS = sorted(verbs())


def help_of(*verb: str, width: int = 80) -> str:
    variables = {"COLUMNS": str(width), "TERMINAL_WIDTH": str(width), "NO_COLOR": "1"}
    result = CliRunner().invoke(app, [*verb, "--help"], env=variables)
    assert result.exit_code == 0
    return result.stdout


def example_of(verb: tuple[str, ...]) -> list[str]:
    """The words of the example that the help opens with, as a shell reads what is pasted."""
    lines = [line.strip() for line in help_of(*verb).splitlines() if line.strip()]
    assert lines[0].startswith(f"Usage: t5refine {' '.join(verb)}")
    assert lines[1] == "Example:"
    pasted = lines[2]
    for line in lines[3:]:
        if not pasted.endswith("\\"):
            break
        pasted = f"{pasted[:-1]}{line}"
    return shlex.split(pasted)


def parse(words: list[str]) -> dict[str, Any]:
    """The values that a command line gives, without running it; wrong usage is an error here."""
    assert words[0] == "t5refine"
    command, rest, names = COMMAND, words[1:], ["t5refine"]
    while hasattr(command, "commands"):
        names.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    with command.make_context(" ".join(names), rest) as context:
        return dict(context.params)


def test_there_are_all_verbs_of_the_design():
    assert {verb[0] for verb in VERBS} == {
        "demo", "prepare", "plan", "train", "evaluate", "restore", "adapters", "config", "doctor",
    }  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids="-".join)
def test_help_opens_with_an_example_whose_options_exist(verb: tuple[str, ...]):
    words = example_of(verb)
    assert words[1 : 1 + len(verb)] == list(verb)
    parse(words)
    assert max(map(len, help_of(*verb).splitlines())) <= 80


def test_an_example_with_an_option_that_is_none_would_be_seen():
    with pytest.raises(Exception, match="No such option"):
        parse(["t5refine", "plan", "--memory", "6GB", "--bse", "x"])
    with pytest.raises(Exception, match="Missing parameter: memory"):
        parse(["t5refine", "plan"])


@pytest.mark.parametrize(("typed", "offered"), [("t5refine tr", "train"), ("t5refine train --dry", "--dry-run")])
def test_shells_complete_verbs_and_options(monkeypatch: pytest.MonkeyPatch, typed: str, offered: str):
    variables = {
        "_T5REFINE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)
    }  # fmt: skip
    result = CliRunner().invoke(app, [], env=variables, prog_name="t5refine")
    assert result.stdout.split() == [offered]
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "True")
    shown = CliRunner().invoke(app, ["--show-completion", "bash"], prog_name="t5refine")
    assert "_T5REFINE_COMPLETE=complete_bash" in shown.stdout


def test_an_unknown_device_is_wrong_usage_of_its_option():
    result = CliRunner().invoke(app, ["restore", "a ___", "--device", "tpu"])
    assert result.exit_code == 2
    assert "--device" in result.stderr
    assert "expected cpu, cuda" in result.stderr


HEADER = ("name", "exact match", "base")
ROWS = [("heart", "31.0% (28.0%-34.0%)", "/a/very/long/path/to/a/base/" + "x" * 70), ("[red]law[/red]", "-", "b")]


def shown(**options: Any) -> str:
    stream = io.StringIO()
    print_table(HEADER, ROWS, console=Console(file=stream, highlight=False, width=80, **options))
    return stream.getvalue()


def test_a_table_fits_the_terminal_with_nothing_cut_off():
    lines = shown(force_terminal=True, no_color=True, color_system=None).splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(lines).count("x") == 70 + 1  # one is in the header
    assert "…" not in "".join(lines)


def test_a_table_in_a_pipe_is_plain_lines():
    header, heart, law = shown().splitlines()
    assert header.split() == ["name", "exact", "match", "base"]
    assert heart.split() == ["heart", "31.0%", "(28.0%-34.0%)", ROWS[0][2]]
    assert law.split() == ["[red]law[/red]", "-", "b"]
    assert header.isascii()
    assert "\x1b" not in header + heart + law


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    table = {"force_terminal": True, "color_system": "truecolor"}
    assert "\x1b[" in shown(**table)
    monkeypatch.setenv("NO_COLOR", "1")
    coloured = [part for part in shown(**table).split("\x1b[")[1:] if part.partition("m")[0].startswith(("3", "4"))]
    assert coloured == []
    assert os.environ["NO_COLOR"] == "1"
