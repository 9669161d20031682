"""`train_adapter`: from a corpus and a term list to an adapter on disk that was measured."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import DatasetDict
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from t5refine_peft.config import TrainingConfig
from t5refine_peft.corpus.collator import CorruptionDataset, DataCollatorForTermCorruption
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.preparation import prepare_dataset
from t5refine_peft.corpus.reading import Corpus
from t5refine_peft.errors import RefineError
from t5refine_peft.evaluation.confidence import measure_confidence
from t5refine_peft.evaluation.evaluate import TermScores, TermTest, score_terms
from t5refine_peft.evaluation.report import render_report
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.modeling.lora import WEIGHTS_FILE, add_adapter, reload_adapter, save_adapter
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.storage import atomic_directory
from t5refine_peft.training.callbacks import DelayedEarlyStoppingCallback
from t5refine_peft.training.trainer import AdapterTrainer

_VERSIONS_OF = ("t5refine-peft", "torch", "transformers", "peft", "sentencepiece", "datasets")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a training run."""

    path: Path
    """The adapter's directory."""
    adapter_bytes: int
    """Size of its weight file."""
    base_scores: TermScores | None
    """The base on the held-out terms; None without a glossary."""
    adapter_scores: TermScores | None
    """The saved adapter on the same."""
    best_step: int
    """The step whose weights were kept, by validation loss."""
    steps: int
    stopped_because: str
    seconds: float
    """Of the whole call."""
    tokens: int
    """Input tokens that were trained on."""


def train_adapter(
    corpus: Corpus | DatasetDict,
    *,
    domain: str,
    glossary: str | Path | Glossary | Iterable[str] | None = None,
    base: str | Path | Base = "google/mt5-base",
    adapters_dir: str | Path = "adapters",
    runs_dir: str | Path = "runs",
    config: TrainingConfig | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train an adapter for a domain, measure it beside the base, and write it to `adapters_dir/domain`.

    Args:
        corpus: texts of the domain: paths, a folder, an iterable of texts, or a dataset of `prepare_dataset`.
        domain: the adapter's name, a plain file name.
        glossary: the domain's terms: a path, a `Glossary` or a list. None trains on random spans alone.
        base: a directory, hub id, `builtin:mt5-mini`, or a loaded base (which is left as it was).
        adapters_dir: where adapters lie.
        runs_dir: where checkpoints lie while training; may be deleted afterwards.
        config: see `TrainingConfig`.
        resume: go on from the newest checkpoint of this domain.
        callbacks: further callbacks of the Trainer.

    Raises:
        RefineError: anything wrong with what was given; nothing is written then.
    """
    started = time.monotonic()
    config = config or TrainingConfig()
    registry = AdapterRegistry(adapters_dir)
    target, run = registry.place(domain), AdapterRegistry(runs_dir).place(domain)
    terms = _glossary(glossary)
    loaded = base if isinstance(base, Base) else load_base(base, device=config.device, precision=config.precision)
    splits = _splits(corpus, loaded, terms, config)
    collator = DataCollatorForTermCorruption(loaded.vocabulary, config.corruption, seed=config.seed)
    test = TermTest.build(splits["test"], collator, limit=config.evaluation_passages)
    base_scores = score_terms(loaded.model, loaded, test, collator)
    checkpoint = _checkpoint(run, resume)
    torch.manual_seed(config.seed)
    model = add_adapter(loaded, config.adapter)
    try:
        stopping = DelayedEarlyStoppingCallback(
            start_step=config.start_step, patience=config.patience, threshold=config.threshold
        )
        trainer = _trainer(model, loaded, splits, collator, config, run, [stopping, *callbacks])
        trainer.train(resume_from_checkpoint=checkpoint)
        best_step = _step(trainer.state.best_model_checkpoint) or trainer.state.global_step
        with atomic_directory(target) as staged:
            save_adapter(model, staged)
            reload_adapter(model, staged)
            adapter_scores = score_terms(model, loaded, test, collator)
            stopped = "the validation loss no longer fell" if stopping.stopped else "all steps were done"
            card = {
                "domain": domain,
                "base": loaded.name,
                "base_fingerprint": loaded.fingerprint,
                "tokenizer_fingerprint": loaded.vocabulary.fingerprint,
                "glossary_fingerprint": terms.fingerprint if terms else None,
                "config": asdict(config),
                "metrics": {"base": _plain(base_scores), "adapter": _plain(adapter_scores)},
                **measure_confidence(model, loaded, splits, collator, limit=config.evaluation_passages),
                "best_step": best_step,
                "steps": trainer.state.global_step,
                "stopped_because": stopped,
                "versions": {name: version(name) for name in _VERSIONS_OF},
            }
            (staged / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            (staged / "report.html").write_text(render_report(card, trainer.eval_history), encoding="utf-8")
    finally:
        model.unload()
    return TrainResult(
        path=target,
        adapter_bytes=(target / WEIGHTS_FILE).stat().st_size,
        base_scores=base_scores,
        adapter_scores=adapter_scores,
        best_step=best_step,
        steps=trainer.state.global_step,
        stopped_because=stopped,
        seconds=time.monotonic() - started,
        tokens=trainer.tokens_seen,
    )


def _glossary(glossary: str | Path | Glossary | Iterable[str] | None) -> Glossary | None:
    if glossary is None or isinstance(glossary, Glossary):
        return glossary
    return Glossary.load(glossary) if isinstance(glossary, str | Path) else Glossary(glossary)


def _splits(corpus: Corpus | DatasetDict, base: Base, glossary: Glossary | None, config: TrainingConfig) -> DatasetDict:
    if isinstance(corpus, DatasetDict):
        missing = {"train", "validation", "test"} - set(corpus)
        if missing:
            raise RefineError(f"the prepared dataset lacks the splits {sorted(missing)}: make it with prepare_dataset")
        return corpus
    return prepare_dataset(
        corpus,
        vocabulary=base.vocabulary,
        glossary=glossary,
        max_tokens=config.max_passage_tokens,
        validation_share=config.validation_share,
        test_share=config.test_share,
        seed=config.seed,
    )


def _trainer(
    model: Any,
    base: Base,
    splits: DatasetDict,
    collator: DataCollatorForTermCorruption,
    config: TrainingConfig,
    run: Path,
    callbacks: list[TrainerCallback],
) -> AdapterTrainer:
    train, validation = splits["train"], splits["validation"]
    validation = validation.select(range(min(len(validation), config.evaluation_passages)))
    micro_batch = config.micro_batch or config.batch
    steps = config.max_steps or math.ceil(config.epochs * math.ceil(len(train) / config.batch))
    every = min(steps, config.eval_steps or max(1, steps // 10))
    transformers.set_seed(config.seed)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(run),
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(config.warmup_share * steps),
        max_grad_norm=config.max_gradient_norm,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=config.batch // micro_batch,
        per_device_eval_batch_size=micro_batch * 2,
        weight_decay=0.0,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, every // 5),
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=base.device.type == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=base.device.type == "cuda",
    )
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=CorruptionDataset(train, fresh=True),
        eval_dataset=CorruptionDataset(validation, fresh=False),
        callbacks=callbacks,
        base=base,
        lengths=train["length"][:],
    )
    trainer.pop_callback(transformers.PrinterCallback)
    return trainer


def _checkpoint(run: Path, resume: bool) -> str | None:
    """The newest complete checkpoint to go on from.

    Raises:
        RefineError: `resume` is asked for and there is none.
    """
    if not resume:
        return None
    complete = [path.parent for path in run.glob("checkpoint-*/trainer_state.json")]
    if not complete:
        raise RefineError(f"nothing to resume: {run} holds no checkpoint; train without resuming")
    return str(max(complete, key=lambda path: _step(path.name) or 0))


def _step(checkpoint: str | None) -> int | None:
    return int(checkpoint.rpartition("-")[2]) if checkpoint else None


def _plain(scores: TermScores | None) -> dict[str, float] | None:
    return None if scores is None else {name: round(value, 6) for name, value in asdict(scores).items()}
