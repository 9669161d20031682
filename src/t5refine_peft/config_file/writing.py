"""Write a configuration file: every key, with the words below its field as the comment above it."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Table

from t5refine_peft.config import RunConfig
from t5refine_peft.config_file.keys import Key, keys_of
from t5refine_peft.config_file.values import described
from t5refine_peft.storage import write_file

_WIDTH = 100
_HEADING = (
    "What `t5refine train --config` reads. Options of the command line win over it. Paths are relative to this file. "
    "A key behind a # has no value (None); take the # away to give it one."
)


def save_config(run: RunConfig, path: str | Path) -> None:
    """Write a run's configuration as the file that `load_config` reads.

    Raises:
        RefineError: the place can't be written to.
    """
    file = Path(path)
    write_file(file, config_text(run, folder=file.parent).encode())


def config_text(run: RunConfig, *, folder: str | Path = ".") -> str:
    """The file's text: every key with its value, and why it has that default.

    Args:
        run: what is written.
        folder: where the file will lie; relative paths are made relative to it.
    """
    document = tomlkit.document()
    _comment(document, _HEADING)
    _fill(document, run, Path(folder), keys_of(RunConfig))
    return tomlkit.dumps(document)


def _fill(table: tomlkit.TOMLDocument | Table, config: Any, folder: Path, keys: tuple[Key, ...]) -> None:
    values = {key: getattr(config, key.name) for key in keys}
    tables = [key for key in keys if key.table is not None and values[key] is not None]
    for key in keys:
        if key not in tables:
            _add(table, key, values[key], folder)
    for key in tables:  # behind the plain keys: TOML would take a key below a table's name for the table's
        inner = tomlkit.table()
        _comment(inner, key.doc or (key.table.__doc__ or "").partition("\n\n")[0])
        _fill(inner, values[key], folder, keys_of(type(values[key]), key.path))
        table.add(key.name, inner)


def _add(table: tomlkit.TOMLDocument | Table, key: Key, value: Any, folder: Path) -> None:
    """A key with its comment; without a value, it is a comment itself."""
    table.add(tomlkit.nl())
    changed = value != key.default and key.default not in (None, ())
    _comment(table, f"{key.doc} Default: {_toml(key.default)}." if changed else key.doc)
    if value is None or value == ():
        table.add(tomlkit.comment(f"{key.name} =  # {described(key)}"))
    else:
        table.add(key.name, tomlkit.item(_plain(key, value, folder)))
    if key.table is not None:
        for inner in keys_of(key.table, key.path):
            table.add(tomlkit.comment(f"{key.name}.{inner.name} = {_toml(inner.default)}"))


def _comment(table: tomlkit.TOMLDocument | Table, words: str) -> None:
    for line in textwrap.wrap(words, _WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        table.add(tomlkit.comment(line))


def _toml(default: Any) -> str:
    written: str = tomlkit.item(_value(default)).as_string()
    return written


def _plain(key: Key, value: Any, folder: Path) -> Any:
    """A value as TOML has it; a base that is a directory begins with a dot, so that it is taken for no hub id."""
    if key.path == ("base",) and Path(value).is_dir() and not Path(value).is_absolute():
        near = _relative(Path(value), folder)
        return near if near.startswith(".") else f"./{near}"
    return _value(value, folder)


def _value(value: Any, folder: Path = Path()) -> Any:
    if isinstance(value, tuple):
        return [_value(item, folder) for item in value]
    return _relative(value, folder) if isinstance(value, Path) else value


def _relative(path: Path, folder: Path) -> str:
    """A relative path as seen from the file's folder; one that is absolute stays."""
    return path.as_posix() if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()
