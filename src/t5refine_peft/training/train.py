"""`train_adapter`: from a corpus and a term list to an adapter on disk that was measured."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from datasets import DatasetDict
from transformers import TrainerCallback

from t5refine_peft.config import TrainingConfig
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.reading import Corpus
from t5refine_peft.errors import RefineError
from t5refine_peft.evaluation.confidence import measure_confidence
from t5refine_peft.evaluation.evaluate import (
    BASE_SYSTEM,
    TermAnswers,
    TermScores,
    TermTest,
    adapter_system,
    answer_terms,
)
from t5refine_peft.evaluation.report import render_report
from t5refine_peft.evaluation.scores import EvaluationReport
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.lora import add_adapter, reload_adapter, save_adapter
from t5refine_peft.registry import AdapterRegistry
from t5refine_peft.registry.card import write_card
from t5refine_peft.registry.files import REPORT_FILE, WEIGHTS_FILE
from t5refine_peft.storage import atomic_directory, check_writable, recover
from t5refine_peft.training.checkpoints import RunDirectory, RunIdentity, fingerprint_splits, fingerprint_values
from t5refine_peft.training.interrupt import InterruptCallback, told_interruption
from t5refine_peft.training.planning import capped_memory
from t5refine_peft.training.processes import is_first_process, process_count
from t5refine_peft.training.progress import ProgressCallback
from t5refine_peft.training.record import save_as_given
from t5refine_peft.training.setup import RunSetup, build_trainer, check_trackers, set_up
from t5refine_peft.training.stopping import DelayedEarlyStoppingCallback

_NO_BEARING = {"device", "memory_bytes", "report_to", "save_steps"}
"""Settings that a resumed run may change: where it runs is told apart from what was asked for, and saved as such. The
memory decides how a batch is cut, which a checkpoint keeps."""

_OF_NO_WEIGHT = {"_name_or_path", "transformers_version", "architectures", "use_cache"}
"""What a base's configuration says of where it is from and of decoding."""


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
    rescue_dir: str | Path | None = None,
    report_examples: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train an adapter for a domain, measure it beside the base, and write it to `adapters_dir/domain`.

    Beside it lies `training.toml`, the resolved configuration: `t5refine train --config` does the same again.

    Args:
        corpus: texts of the domain: paths, a folder, an iterable of texts (see `read_documents`), a dataset of
            `prepare_dataset`, or the directory of one that `t5refine prepare` wrote. Written pairs of `inputs` and
            `targets` are trained on as they are.
        domain: the adapter's name, a plain file name.
        glossary: the domain's terms: a path, a `Glossary` or a list. None trains on random spans alone.
        base: a directory, hub id, `builtin:mt5-mini`, or a loaded base (which is left as it was).
        adapters_dir: where adapters lie.
        runs_dir: where checkpoints lie while training; may be deleted afterwards.
        config: see `TrainingConfig`.
        resume: go on from the newest checkpoint of this domain, to the adapter of the run that was never cut.
        rescue_dir: where the state in memory is saved when a checkpoint can't be written to `runs_dir`.
        report_examples: show twenty test passages in `report.html`, with what was restored in them; without them it
            holds no text of the corpus but terms.
        callbacks: further callbacks of the Trainer; an `InterruptCallback` among them takes the place of the one that
            is there anyway.

    Started by `torchrun` or `accelerate launch`, several processes train one adapter; the first writes it, and all
    return the same.

    Raises:
        RefineError: anything wrong with what was given, with nothing written then; a run to resume that is not this
            one; numbers that are no longer finite; a disk that takes no more.
        KeyboardInterrupt: at the first Ctrl+C or SIGTERM, when the step has ended and a checkpoint is written; before
            and after training at once.
    """
    started = time.monotonic()
    config = config or TrainingConfig()
    check_trackers(config.report_to)
    target = AdapterRegistry(adapters_dir).place(domain)
    run = RunDirectory(AdapterRegistry(runs_dir).place(domain))
    if is_first_process():
        check_writable(target.parent)
        check_writable(run.path.parent)
    with told_interruption("interrupted before training began, so there is nothing to save: start it again"):
        setup = set_up(corpus, glossary=glossary, base=base, config=config)
        loaded, data, collator, plan = setup.base, setup.data, setup.collator, setup.plan
        splits, config = data.splits, data.config
        checkpoint = _begin(run, target, _identity(setup), resume)
        test = TermTest.build(splits["test"], collator, limit=config.evaluation_passages, training_rows=splits["train"])
        with capped_memory(plan, loaded.device):
            base_answers = answer_terms(loaded.model, loaded, test, collator)
    torch.manual_seed(config.seed)
    model = add_adapter(loaded, config.adapter)
    interrupt = next(
        (callback for callback in callbacks if isinstance(callback, InterruptCallback)),
        InterruptCallback(how_to_resume="train_adapter(..., resume=True)"),
    )
    with capped_memory(plan, loaded.device), ExitStack() as afterwards:
        afterwards.callback(model.unload)
        for callback in (interrupt, *callbacks):
            if isinstance(callback, InterruptCallback | ProgressCallback):
                afterwards.callback(callback.close)  # an error ends training without an event
        stopping = DelayedEarlyStoppingCallback(
            start_step=config.start_step,
            patience=config.patience,
            threshold=config.threshold,
            relative=config.relative_threshold,
            window=config.window,
            metric=config.metric,
        )
        rescue = RunDirectory(AdapterRegistry(rescue_dir).place(domain)) if rescue_dir is not None else None
        trainer = build_trainer(
            model,
            loaded,
            splits,
            collator,
            config,
            run.path,
            callbacks=[stopping, *(callback for callback in callbacks if callback is not interrupt), interrupt],
            rescue=rescue,
            plan=plan,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        after = f"interrupted before the trained adapter was written; go on with {interrupt.how_to_resume}"
        afterwards.enter_context(told_interruption(after))
        state = trainer.state
        best_step = state.best_global_step or state.global_step
        stopped = f"{config.metric} no longer got better" if stopping.stopped else "all steps were done"
        scores: list[TermScores | None] = [None]
        if trainer.is_world_process_zero():
            if not (run.checkpoint(best_step) / WEIGHTS_FILE).is_file():
                raise RefineError(f"{run.checkpoint(best_step)}, the best, was removed while training; train anew")
            reload_adapter(model, run.checkpoint(best_step))
            with atomic_directory(target) as staged:
                save_adapter(model, staged)
                reload_adapter(model, staged)
                answers = answer_terms(model, loaded, test, collator)
                scores = [answers.scores if answers else None]
                confidence = measure_confidence(model, loaded, splits, collator, limit=config.evaluation_passages)
                card = {
                    "domain": domain,
                    "base": loaded.name,
                    "base_fingerprint": loaded.fingerprint,
                    "tokenizer_fingerprint": loaded.vocabulary.fingerprint,
                    "glossary_fingerprint": data.glossary_fingerprint,
                    "config": asdict(config),
                    "metrics": {"base": _plain(base_answers), "adapter": _plain(answers)},
                    **confidence,
                    "best_step": best_step,
                    "steps": state.global_step,
                    "stopped_because": stopped,
                }
                write_card(staged, card)
                report = render_report(
                    _side_by_side(test, domain, base_answers, answers),
                    title=domain,
                    log_history=state.log_history,
                    best_step=best_step,
                    steps=state.global_step,
                    stopped_because=stopped,
                    confidence=confidence,
                    examples=report_examples,
                )
                (staged / REPORT_FILE).write_text(report, encoding="utf-8")
                save_as_given(
                    staged,
                    corpus=corpus,
                    domain=domain,
                    glossary=glossary,
                    base=loaded.name,
                    adapters_dir=adapters_dir,
                    runs_dir=runs_dir,
                    rescue_dir=rescue_dir,
                    report_examples=report_examples,
                    config=config,
                )
        adapter_scores = broadcast_object_list(scores)[0]
    return TrainResult(
        path=target,
        adapter_bytes=(target / WEIGHTS_FILE).stat().st_size,
        base_scores=base_answers.scores if base_answers else None,
        adapter_scores=adapter_scores,
        best_step=best_step,
        steps=state.global_step,
        stopped_because=stopped,
        seconds=time.monotonic() - started,
        tokens=state.num_input_tokens_seen,
    )


def _identity(setup: RunSetup) -> RunIdentity:
    """What the run depends on; where it is saved and told has no bearing on the adapter."""
    base, data = setup.base, setup.data
    tokens, terms = fingerprint_splits(data.splits)
    settings = {name: value for name, value in asdict(data.config).items() if name not in _NO_BEARING}
    shape = {name: value for name, value in base.model.config.to_dict().items() if name not in _OF_NO_WEIGHT}
    return RunIdentity(
        corpus=tokens,
        glossary="-".join(filter(None, [data.glossary_fingerprint, terms, _weights(setup.collator.term_weights)])),
        base=f"{base.fingerprint}-{fingerprint_values(shape)}",
        tokenizer=base.vocabulary.fingerprint,
        config={
            **settings,
            "precision": base.precision,
            "device": base.device.type,
            "processes": process_count(),
        },
    )


def _weights(terms: Sequence[float] | None) -> str | None:
    """Fingerprint of the terms' weights; None where all weigh the same, with a prepared dataset's own terms say."""
    return None if terms is None or set(terms) == {1.0} else fingerprint_values(list(terms))


def _begin(run: RunDirectory, target: Path, identity: RunIdentity, resume: bool) -> Path | None:
    """Start the run, or find the checkpoint to go on from; of several processes the first one writes."""
    if is_first_process():
        recover(target)
        if not resume:
            run.start(identity)
        else:
            run.clear_leftovers()
    return run.resume(identity) if resume else None


def _side_by_side(
    test: TermTest, domain: str, base: TermAnswers | None, adapter: TermAnswers | None
) -> EvaluationReport | None:
    if base is None or adapter is None:
        return None
    return EvaluationReport.of(test.questions, {BASE_SYSTEM: base.answers, adapter_system(domain): adapter.answers})


def _plain(answers: TermAnswers | None) -> dict[str, float] | None:
    return None if answers is None else {name: round(value, 6) for name, value in asdict(answers.scores).items()}
