"""A run's settings: the configuration file, and over it what was typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from t5refine_peft.config import RunConfig
from t5refine_peft.errors import ConfigError, RefineError

OPTIONS = {
    "--domain": "domain",
    "--terms": "terms",
    "--base": "base",
    "--adapters-dir": "adapters_dir",
    "--runs-dir": "runs_dir",
    "--rescue-dir": "rescue_dir",
    "--examples": "report_examples",
    "--epochs": "training.epochs",
    "--max-steps": "training.max_steps",
    "--batch": "training.batch",
    "--learning-rate": "training.learning_rate",
    "--rank": "training.adapter.rank",
    "--eval-steps": "training.eval_steps",
    "--save-steps": "training.save_steps",
    "--patience": "training.patience",
    "--start-step": "training.start_step",
    "--report-to": "training.report_to",
    "--memory": "training.memory_bytes",
    "--quantization": "training.quantization",
    "--device": "training.device",
    "--seed": "training.seed",
}
"""Each option's key in the file."""


def run_config(file: Path | None, corpus: list[Path] | None, typed: Mapping[str, Any]) -> RunConfig:
    """The run that a file and a command line describe; of the two, the command line wins.

    Args:
        file: of `--config`.
        corpus: the paths that were typed.
        typed: values by option, None where it was not typed.

    Raises:
        RefineError: a fault in the file, or a value that can't be, with its option's name.
        typer.BadParameter: neither gives a corpus or a domain.
    """
    from t5refine_peft.config_file import load_config

    run = RunConfig() if file is None else load_config(file)
    if corpus:
        run = replace(run, corpus=tuple(corpus))
    names = {key: option for option, key in OPTIONS.items()}
    values: dict[str, Any] = {OPTIONS[option]: value for option, value in typed.items() if value is not None}
    if "training.epochs" in values:
        values.setdefault("training.max_steps", None)  # the file's steps would win over the epochs that were typed
    try:
        changed: RunConfig = _replaced(run, values)
    except ConfigError as error:
        raise RefineError("; ".join(f"{names.get(key, key)} {fault}" for key, fault in error.faults)) from None
    where = f" ({file} names none)" if file is not None else ", or a file of them with --config"
    if not changed.corpus:
        raise typer.BadParameter(f"give the CORPUS to train on{where}")
    if not changed.domain:
        raise typer.BadParameter(f"give the adapter's name with --domain{where}")
    return changed


def _replaced(config: Any, values: Mapping[str, Any], above: str = "") -> Any:
    """A configuration with the values of these keys, below `above`.

    Raises:
        ConfigError: of all tables, by the keys' whole names.
    """
    own, tables = {}, set()
    for key, value in values.items():
        name, dot, _ = key.removeprefix(above).partition(".")
        if dot:
            tables.add(name)
        else:
            own[name] = value
    faults: list[tuple[str, str]] = []
    for name in sorted(tables):
        inner = f"{above}{name}."
        try:
            below = {key: value for key, value in values.items() if key.startswith(inner)}
            own[name] = _replaced(getattr(config, name), below, inner)
        except ConfigError as error:
            faults += error.faults
    try:
        changed = replace(config, **own)
    except ConfigError as error:
        faults += [(f"{above}{name}", fault) for name, fault in error.faults]
    if faults:
        raise ConfigError(faults)
    return changed
