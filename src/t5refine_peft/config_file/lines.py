"""On which line of a TOML file a key stands: `tomllib` does not tell."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from t5refine_peft.config_file.keys import KeyPath


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, on which each key and table of a sound file begins.

    A key begins behind the longest beginning of the file that is a sound file without it. So whatever TOML allows is
    read by the one that knows it: text over several lines, dotted keys, tables in a line.

    >>> key_lines('a = 1\\n[b]\\nc = [\\n  2,\\n]\\nd.e = 3\\n')
    {('a',): 1, ('b',): 2, ('b', 'c'): 3, ('b', 'd'): 6, ('b', 'd', 'e'): 6}
    """
    lines = text.split("\n")
    found: dict[KeyPath, int] = {}
    begins = 1
    for end in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # within a value that goes over several lines
        for path in _paths(table):
            found.setdefault(path, begins)
        begins = end + 1
    return found


def _paths(table: dict[str, Any], above: KeyPath = ()) -> Iterator[KeyPath]:
    for name, value in table.items():
        path = (*above, name)
        yield path
        if isinstance(value, dict):
            yield from _paths(value, path)
