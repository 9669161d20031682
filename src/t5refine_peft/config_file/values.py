"""A value of TOML as a field takes it, and what a field takes in words."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from t5refine_peft.config import Quantization
from t5refine_peft.config_file.keys import Key, options_of
from t5refine_peft.errors import RefineError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


class Unfit(Exception):
    """A value that a field does not take; the message says what was expected and found."""


def parse_bytes(text: str) -> int:
    """The bytes of an amount such as 6GB (10^9 each) or 5.5GiB (2^30 each).

    Raises:
        RefineError: it is no such amount.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise RefineError(f"{text!r} is no amount of memory: expected a number and a unit, such as 6GB or 5.5GiB")
    return int(float(found[1]) * unit)


def parse_value(key: Key, value: Any, folder: Path) -> Any:
    """What TOML gave for a plain key, as the field takes it.

    Args:
        key: the key; one in bytes takes an amount such as "6GB" too, a list of things one of them alone, and
            `quantization` the name of a scheme.
        value: as `tomllib` reads it.
        folder: what paths are relative to.

    Raises:
        Unfit: the field takes no such value.
    """
    try:
        if _holds_bytes(key) and isinstance(value, str):
            return parse_bytes(value)
        if key.table is Quantization and isinstance(value, str):
            return Quantization.named(value)
    except RefineError as error:
        raise Unfit(f"can't be taken: {error}") from None
    if key.path == ("base",) and isinstance(value, str):
        return _base(value, folder)
    for option in options_of(key.hint):
        try:
            return _parse(option, value, folder)
        except TypeError:
            continue
    raise Unfit(f"must be {described(key)}, found {_short(value)}")


def described(key: Key) -> str:
    """What a key takes, in words."""
    words = [_words(option) for option in options_of(key.hint) if not is_dataclass(option)]
    if _holds_bytes(key):
        words.append('an amount such as "6GB"')
    if key.table is Quantization:
        words.append('"none", "int8", "nf4" or a table')
    return " or ".join(words)


def _holds_bytes(key: Key) -> bool:
    return key.name.endswith("_bytes")


def beside(folder: Path, path: str | Path) -> Path:
    """A path relative to a folder, its `..` taken out: what it leads through may be moved while a run writes."""
    return Path(os.path.normpath(folder / Path(path).expanduser()))


def _base(value: str, folder: Path) -> str:
    """A directory beside the file, or a name as it is."""
    path = beside(folder, value)
    is_path = value.startswith((".", "~", "/")) or path.is_dir()
    return str(path) if is_path else value


def _parse(option: Any, value: Any, folder: Path) -> Any:
    """A value as one of the types that are used in `config`.

    Raises:
        TypeError: it is none.
    """
    if option is Path and isinstance(value, str):
        return beside(folder, value)
    if option in (bool, str) and isinstance(value, option):
        return value
    if option is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if option is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if get_origin(option) is Literal and value in get_args(option):
        return value
    if get_origin(option) is tuple:
        return _parse_list(get_args(option), value, folder)
    raise TypeError


def _parse_list(types: tuple[Any, ...], value: Any, folder: Path) -> tuple[Any, ...]:
    if types[-1] is Ellipsis:
        values = value if isinstance(value, list) else [value]
        return tuple(_parse(types[0], item, folder) for item in values)
    if not isinstance(value, list) or len(value) != len(types):
        raise TypeError
    return tuple(_parse(kind, item, folder) for kind, item in zip(types, value, strict=True))


def _words(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(f'"{value}"' for value in get_args(option))
    if get_origin(option) is tuple:
        types = get_args(option)
        if types[-1] is Ellipsis:
            return f"a list of {_PLAIN[types[0]].removeprefix('a ')}{'s' if types[0] is Path else ''}"
        return f"{len(types)} {_PLAIN[types[0]].removeprefix('a ')}s in brackets"
    return _PLAIN[option]


def _short(value: Any) -> str:
    shown = json.dumps(value, default=str, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "..."
