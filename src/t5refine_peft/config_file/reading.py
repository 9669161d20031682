"""Read a configuration file, and tell all of its faults at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz, process

from t5refine_peft.config import RunConfig
from t5refine_peft.config_file.keys import Key, KeyPath, all_keys, keys_of
from t5refine_peft.config_file.lines import key_lines
from t5refine_peft.config_file.values import Unfit, beside, described, parse_value
from t5refine_peft.errors import ConfigError, RefineError

_NEAR = 70.0
"""Names less alike than this, of 100, are no likely slip of each other."""


def load_config(path: str | Path) -> RunConfig:
    """Read a run's configuration: `train_adapter(**load_config("cardiology.toml").train_arguments())`.

    Keys that are missing have their defaults. Paths are relative to the file, those of the defaults too.

    Args:
        path: a TOML file as `t5refine config` writes it, or the `training.toml` beside a trained adapter.

    Raises:
        RefineError: the file can't be read or is no TOML; or, in one message with their lines, all keys that are not
            known, have a value of another type, or one that is out of range.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise RefineError(
            f"{file} can't be read: {error.strerror}; `t5refine config --output {file.name}` writes one"
        ) from None
    except UnicodeDecodeError as error:
        raise RefineError(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8, as TOML wants it") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RefineError(f"{file} is no TOML: {error}") from None
    reader = _Reader(file.parent)
    found: RunConfig = reader.read(RunConfig, table)
    if reader.faults:
        lines = key_lines(text)
        told = sorted((lines.get(path, 0), f"{'.'.join(path)} {fault}") for path, fault in reader.faults)
        raise RefineError(f"{file}: {'; '.join(f'line {n}: {what}' if n else what for n, what in told)}")
    return found


class _Reader:
    """Makes dataclasses of tables, and notes what is wrong."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.faults: list[tuple[KeyPath, str]] = []

    def read(self, config: type[Any], table: dict[str, Any], above: KeyPath = ()) -> Any:
        """The dataclass that a table describes; where it can't be made, the one with the defaults."""
        keys = {key.name: key for key in keys_of(config, above)}
        values: dict[str, Any] = {
            key.name: beside(self._folder, key.default) for key in keys.values() if key.hint is Path
        }
        for name, value in table.items():
            if name not in keys:
                self.faults.append(((*above, name), f"is not known{_near(name, isinstance(value, dict))}"))
                continue
            key = keys[name]
            try:
                values[name] = self._value(key, value)
            except Unfit as unfit:
                self.faults.append((key.path, str(unfit)))
        try:
            return config(**values)
        except ConfigError as error:
            self.faults += [((*above, name), fault) for name, fault in error.faults]
            return config()

    def _value(self, key: Key, value: Any) -> Any:
        if key.table is not None and isinstance(value, dict):
            return self.read(key.table, value, key.path)
        if key.table is not None and not described(key):
            raise Unfit(f"must be a table, [{key.dotted}]")
        return parse_value(key, value, self._folder)


def _near(name: str, is_table: bool) -> str:
    """The known keys, or tables, that may have been meant: of a like name, or of the same elsewhere."""
    known = {key.dotted: key.name for key in all_keys() if (key.table is not None) == is_table}
    found = process.extract(name, known, scorer=fuzz.ratio, score_cutoff=_NEAR, limit=3)
    best = [dotted for _, score, dotted in found if score >= found[0][1] - 10]
    return f"; did you mean {' or '.join(best)}?" if best else ""
