"""What a run was asked for, as the configuration file that is saved beside its adapter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datasets import DatasetDict

from t5refine_peft.config import RunConfig, TrainingConfig
from t5refine_peft.config_file import save_config
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.reading import Corpus, corpus_paths
from t5refine_peft.registry.files import RUN_FILE


def save_as_given(
    directory: Path,
    *,
    corpus: Corpus | DatasetDict,
    domain: str,
    glossary: str | Path | Glossary | Iterable[str] | None,
    base: str,
    adapters_dir: str | Path,
    runs_dir: str | Path,
    rescue_dir: str | Path | None,
    report_examples: bool,
    config: TrainingConfig,
) -> None:
    """Write what `train_adapter` was given, with the resolved `config`, to a file in `directory`.

    What was given as an object, and not as a path, is left out. `directory` lies in `adapters_dir`.
    """
    run = RunConfig(
        corpus=tuple((None if isinstance(corpus, DatasetDict) else corpus_paths(corpus)) or ()),
        domain=domain,
        terms=Path(glossary) if isinstance(glossary, str | Path) else None,
        base=base,
        adapters_dir=Path(adapters_dir),
        runs_dir=Path(runs_dir),
        rescue_dir=None if rescue_dir is None else Path(rescue_dir),
        report_examples=report_examples,
        training=config,
    )
    save_config(run, directory / RUN_FILE)
