"""What a run is made of: the base, the data and the trainer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from datasets import DatasetDict
from transformers import Seq2SeqTrainingArguments, TrainerCallback
from transformers.integrations import get_available_reporting_integrations

from t5refine_peft.config import TrainingConfig
from t5refine_peft.corpus.collator import CorruptionDataset, DataCollatorForTermCorruption
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.reading import Corpus
from t5refine_peft.errors import RefineError
from t5refine_peft.evaluation.evaluate import TermTest
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.modeling.memory import MemoryPlan
from t5refine_peft.training.checkpoints import RunDirectory
from t5refine_peft.training.data import TrainingData, training_data
from t5refine_peft.training.health import HealthCallback
from t5refine_peft.training.planning import plan_training
from t5refine_peft.training.processes import local_device, micro_batches
from t5refine_peft.training.trainer import AdapterTrainer


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not there.

    Raises:
        RefineError: it is unknown, or its package is not installed.
    """
    installed = get_available_reporting_integrations() if names else []
    for name in names:
        if name not in installed:
            raise RefineError(
                f"report_to names {name!r}, which is no tracker that is installed here (found: "
                f"{', '.join(sorted(installed)) or 'none'}); pip install its package, t5refine-peft[tensorboard] say"
            )


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What a run starts from.

    Attributes:
        base: loaded, and stored as the plan of its memory says.
        data: the splits, and the configuration as it was resolved.
        collator: masks them.
        plan: of the memory, for the passages that are there; see `plan_training`.
    """

    base: Base
    data: TrainingData
    collator: DataCollatorForTermCorruption
    plan: MemoryPlan | None


def set_up(
    corpus: Corpus | DatasetDict,
    *,
    glossary: str | Path | Glossary | Iterable[str] | None,
    base: str | Path | Base,
    config: TrainingConfig,
    cache_dir: str | Path | None = None,
) -> RunSetup:
    """Plan the memory, load the base, and prepare the corpus.

    Args:
        corpus: this, glossary, base and config: see `train_adapter`.
        glossary: see there.
        base: see there.
        config: see there.
        cache_dir: see `prepare_corpus`.

    Raises:
        RefineError: see `Glossary`, `plan_training`, `load_base` and `training_data`.
    """
    terms = _read_terms(glossary)
    loaded, plan = _load_planned(base, config, corpus)
    data = training_data(
        corpus,
        vocabulary=loaded.vocabulary,
        glossary=terms,
        config=replace(config, quantization=loaded.quantization),
        cache_dir=cache_dir,
    )
    collator = DataCollatorForTermCorruption(
        loaded.vocabulary,
        data.config.corruption,
        seed=data.config.seed,
        term_weights=terms.weights if terms else None,
    )
    plan = plan and plan_training(loaded, data.config, data.splits)  # now that the passages are there
    return RunSetup(base=loaded, data=data, collator=collator, plan=plan)


def _load_planned(
    base: str | Path | Base, config: TrainingConfig, corpus: Corpus | DatasetDict
) -> tuple[Base, MemoryPlan | None]:
    device = config.device or local_device()
    plan = plan_training(base, replace(config, device=device), corpus)
    if isinstance(base, Base):
        return base, plan
    quantization = config.quantization if plan is None else plan.quantization
    return load_base(base, quantization=quantization, device=device, precision=config.precision), plan


def _read_terms(glossary: str | Path | Glossary | Iterable[str] | None) -> Glossary | None:
    if glossary is None or isinstance(glossary, Glossary):
        return glossary
    return Glossary.load(glossary) if isinstance(glossary, str | Path) else Glossary(glossary)


def build_trainer(
    model: Any,
    base: Base,
    splits: DatasetDict,
    collator: DataCollatorForTermCorruption,
    config: TrainingConfig,
    run: Path,
    *,
    callbacks: Sequence[TrainerCallback],
    rescue: RunDirectory | None = None,
    plan: MemoryPlan | None = None,
) -> AdapterTrainer:
    """The trainer of a run.

    Args:
        model: the base with the adapter on it.
        base: the base.
        splits: what is trained on and evaluated.
        collator: masks them.
        config: how.
        run: the run's directory.
        callbacks: in the order in which they are asked.
        rescue: see `train_adapter`.
        plan: see `AdapterTrainer`.

    Raises:
        RefineError: the batch can't be shared out evenly, or nothing is there to be judged by `config.metric`.
    """
    train, validation = splits["train"], splits["validation"]
    validation = validation.select(range(min(len(validation), config.evaluation_passages)))
    micro_batch, accumulated = micro_batches(config)
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
        gradient_accumulation_steps=accumulated,
        per_device_eval_batch_size=micro_batch * 2,
        weight_decay=0.0,
        optim="paged_adamw_8bit" if base.device.type == "cuda" else "adamw_torch_fused",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=min(steps, config.save_steps or every),
        save_total_limit=2,
        metric_for_best_model=f"eval_{config.metric}",
        greater_is_better=config.metric != "loss",
        logging_steps=max(1, every // 5),
        logging_nan_inf_filter=False,  # HealthCallback stops there instead
        include_num_input_tokens_seen="non_padding",
        restore_callback_states_from_checkpoint=True,
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=base.device.type == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=base.device.type == "cuda",
        ddp_find_unused_parameters=False,
    )
    term_test = None
    if config.metric == "term_exact_match":
        term_test = TermTest.build(validation, collator, limit=config.evaluation_passages)
        if not term_test.examples:
            raise RefineError("metric is term_exact_match, but no passage of the validation split holds a term")
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=CorruptionDataset(train, fresh=True),
        eval_dataset=CorruptionDataset(validation, fresh=False),
        callbacks=list(callbacks),
        base=base,
        lengths=train["length"][:],
        run=RunDirectory(run),
        rescue=rescue,
        term_test=term_test,
        plan=plan,
    )
    trainer.pop_callback(transformers.PrinterCallback)
    trainer.add_callback(
        HealthCallback(documents_of=lambda step: [train[n]["document"] for n in trainer.sampler.of_step(step)])
    )
    return trainer
