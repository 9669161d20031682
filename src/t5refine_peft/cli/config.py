"""`t5refine config`: a commented configuration file, with settings that fit a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from t5refine_peft.cli import options
from t5refine_peft.config import RunConfig, TrainingConfig


def write_config(
    corpus: options.Corpus = None,
    domain: options.Domain = None,
    terms: options.Terms = None,
    base: options.Base = RunConfig.base,
    memory: Annotated[
        str | None, typer.Option(help="Choose quantization and micro-batch for a GPU of so much, such as 6GB.")
    ] = None,
    quantization: options.Quantization = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
    offline: options.Offline = False,
) -> None:
    """Write all options of train as a commented TOML file, to be edited and given to train --config.

    Example: t5refine config --base google/mt5-large --memory 6GB --output large.toml
    """
    options.stay_offline(offline)
    from t5refine_peft.config_file import config_text, save_config
    from t5refine_peft.storage import free_path

    training = TrainingConfig(quantization=options.parse_quantization(quantization))
    if memory is not None:
        budget_bytes = options.parse_memory(memory)
        from t5refine_peft.training.recipes import recipe

        with options.named("--memory"):
            training = recipe(base, budget_bytes, config=training)
    run = RunConfig(corpus=tuple(corpus or ()), domain=domain, terms=terms, base=base, training=training)
    if output is None:
        print(config_text(run), end="")
        return
    with options.named("--output"):
        save_config(run, free_path(output))
    print(f"train with it: t5refine train --config {output}", file=sys.stderr)
