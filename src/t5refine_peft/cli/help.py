"""A verb's help, from its docstring: the example first, then what it does."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import typer

_MARK = "Example: "
_WIDTH = 76
"""What is left of 80 columns for a line of an example."""


def add_verb(app: typer.Typer, verb: Callable[..., Any], name: str | None = None) -> None:
    """Give `app` a verb whose docstring ends in a paragraph "Example: t5refine ...": its help opens with that."""
    text, _, example = (verb.__doc__ or "").partition(_MARK)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    shown = "\n".join(["\b", "Example:", *_lines(shlex.split(example))])
    app.command(name, help="\n\n".join([shown, *paragraphs]), short_help=paragraphs[0])(verb)


def _lines(words: list[str]) -> list[str]:
    """A command, broken as a shell takes it, never between an option and its value."""
    pieces: list[str] = []
    for word in words:
        quoted = word if shlex.quote(word) == word else f'"{word}"'
        if pieces and pieces[-1].startswith("--") and " " not in pieces[-1] and not word.startswith("--"):
            pieces[-1] += f" {quoted}"
        else:
            pieces.append(quoted)
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) > _WIDTH - 3:
            lines[-1] += " \\"
            lines.append(f"  {piece}")
        else:
            lines[-1] += f" {piece}"
    return lines
