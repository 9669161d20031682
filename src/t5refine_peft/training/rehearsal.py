"""A dry run: all that training reads, what is masked, two real steps, and what the whole would take. Nothing is left
on the disk."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5refine_peft.config import TrainingConfig
from t5refine_peft.corpus.export import ShownPassage, shown_passages
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.reading import Corpus
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.memory import MemoryPlan
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.storage import check_writable
from t5refine_peft.training.memory import memory_in_use
from t5refine_peft.training.planning import capped_memory, forecast
from t5refine_peft.training.setup import build_trainer, check_trackers, set_up

STEPS = 2
_LOOKED_AT = 1000
"""So many passages are looked through for some with terms in them."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a run would do and take."""

    passages: tuple[ShownPassage, ...]
    """A few of the training split, masked as in an evaluation; such with terms in them first."""
    plan: MemoryPlan
    """The memory, by arithmetic."""
    memory_bytes: int
    """The memory, measured: the most that was held of the GPU, or what was held of the host's at the end."""
    loss: float
    """Of the last step."""
    steps: int
    """Of the whole run, if nothing stops it early."""
    evaluations: int
    step_seconds: tuple[float, ...]
    """Measured on the steps that were done; the first one warms up."""
    seconds_a_step: float
    """Of a step with as many tokens as the average one, at the rate of the faster of those."""
    evaluation_seconds: float
    """Of one evaluation: half as much a token as in training, where a backward follows each forward."""

    @property
    def total_seconds(self) -> float:
        """Of all steps and evaluations; without the scoring of held-out terms before and after."""
        return self.steps * self.seconds_a_step + self.evaluations * self.evaluation_seconds


def rehearse_training(
    corpus: Corpus | DatasetDict,
    *,
    domain: str,
    glossary: str | Path | Glossary | Iterable[str] | None = None,
    base: str | Path | Base = "google/mt5-base",
    adapters_dir: str | Path = "adapters",
    runs_dir: str | Path = "runs",
    config: TrainingConfig | None = None,
    rescue_dir: str | Path | None = None,
    report_examples: bool = False,  # noqa: ARG001  # so that it takes what `train_adapter` takes
    show: int = 5,
) -> Rehearsal:
    """Do all that `train_adapter` would do up to its second step, and throw it away.

    A corpus that is not prepared yet is prepared in a temporary directory, which is removed.

    Args:
        corpus: this, and what is not named here: as in `train_adapter`.
        domain: checked, as are the places that would be written to.
        glossary: see `train_adapter`.
        base: see `train_adapter`.
        adapters_dir: see `train_adapter`.
        runs_dir: see `train_adapter`.
        config: see `TrainingConfig`.
        rescue_dir: see `train_adapter`.
        report_examples: of no bearing, as no report is written.
        show: so many passages are shown.

    Raises:
        RefineError: as `train_adapter` would, before it trains.
    """
    config = config or TrainingConfig()
    check_trackers(config.report_to)
    for directory in (adapters_dir, runs_dir, rescue_dir):
        if directory is not None:
            check_writable(AdapterRegistry(directory).place(domain).parent)
    with tempfile.TemporaryDirectory(prefix="t5refine-dry-run-", ignore_cleanup_errors=True) as scratch:
        setup = set_up(corpus, glossary=glossary, base=base, config=config, cache_dir=Path(scratch, "cache"))
        loaded, collator, plan = setup.base, setup.collator, setup.plan
        splits, config = setup.data.splits, replace(setup.data.config, report_to=())
        passages = shown_passages(_with_terms_first(splits["train"], show), collator, count=show)
        torch.manual_seed(config.seed)
        model = add_adapter(loaded, config.adapter)
        try:
            clock = _TwoSteps()
            trainer = build_trainer(
                model, loaded, splits, collator, config, Path(scratch, "run"), callbacks=[], plan=plan
            )
            trainer.add_callback(clock)  # the last one, so that no other one asks for a checkpoint behind it
            with capped_memory(plan, loaded.device):
                loss = trainer.train().training_loss
        finally:
            model.unload()
        lengths = splits["train"]["length"][:]
        seconds_a_token = min(seconds / tokens for seconds, tokens in zip(clock.seconds, clock.tokens, strict=True))
        evaluated = sum(splits["validation"]["length"][: config.evaluation_passages])
        return Rehearsal(
            passages=tuple(passages),
            plan=plan or forecast(loaded, config, splits),
            memory_bytes=memory_in_use(),
            loss=loss,
            steps=trainer.args.max_steps,
            evaluations=math.ceil(trainer.args.max_steps / trainer.args.eval_steps),
            step_seconds=tuple(clock.seconds),
            seconds_a_step=config.batch * sum(lengths) / len(lengths) * seconds_a_token,
            evaluation_seconds=evaluated * seconds_a_token / 2,
        )


class _TwoSteps(TrainerCallback):  # type: ignore[misc]
    """Times two steps and ends the training there, with nothing evaluated, logged or saved."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self._mark = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark = _now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = _now()
        self.seconds.append(now - self._mark)
        self.tokens.append(int(state.num_input_tokens_seen) - sum(self.tokens))
        self._mark = now
        control.should_evaluate = control.should_save = control.should_log = False
        control.should_training_stop = control.should_training_stop or state.global_step >= STEPS


def _now() -> float:
    """When all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _with_terms_first(rows: Dataset, count: int) -> Dataset:
    """A few passages, those with terms before others."""
    looked = range(min(len(rows), _LOOKED_AT))
    found = rows.select(looked)["term_spans"][:]
    return rows.select(sorted(looked, key=lambda number: not len(found[number]))[:count])
