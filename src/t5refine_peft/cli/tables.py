"""Tables: by rich on a terminal, within its width; plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_ENDLESS = 1 << 16
"""Columns of a pipe: a table takes as many as it needs."""


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, console: Console | None = None) -> None:
    """Print a table to standard output: the first column from the left, the others from the right.

    What is too long for a terminal goes on in the cell's next line, and nothing is cut off. In a pipe each row is one
    line, however long. Colours are rich's business, which knows NO_COLOR.
    """
    console = console or Console(highlight=False)
    piped = not console.is_terminal
    table = Table(
        box=None if piped else box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="" if piped else "bold",
        padding=(0, 2, 0, 0) if piped else (0, 1),
    )
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: a name may look like markup
    if not piped:
        console.print(table)
        return
    console.width = _ENDLESS
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)
