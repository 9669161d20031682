"""The main job, end to end, on the built-in base."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict

from t5refine_peft.config import AdapterConfig, CorruptionConfig, TrainingConfig
from t5refine_peft.corpus.collator import DataCollatorForTermCorruption
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.demo.generator import Subject
from t5refine_peft.demo.texts import (
    DOMAINS,
    held_out_documents,
    load_domain,
    training_documents,
    validation_documents,
    with_gaps,
)
from t5refine_peft.evaluation.evaluate import TermTest, score_terms
from t5refine_peft.evaluation.metrics import is_exact
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.restoration.restorer import Restorer
from t5refine_peft.training.callbacks import ProgressCallback
from t5refine_peft.training.train import TrainResult, train_adapter

BASE = "builtin:mt5-mini"

DEMO_CONFIG = TrainingConfig(
    adapter=AdapterConfig(rank=20, dropout=0.0),
    corruption=CorruptionConfig(mask_share=0.2, term_probability=0.4, all_occurrences=1.0, random_only=0.0),
    learning_rate=3e-3,
    batch=16,
    max_steps=450,
    eval_steps=225,
    warmup_share=0.05,
)
"""For a base of 7 M parameters and a minute or two on a core: more masked and a higher rate than for a real base."""

EXAMPLE_DOCUMENTS = 10
"""Held-out documents of a domain from which the text that is shown is taken."""


@dataclass(frozen=True, kw_only=True)
class DomainResult:
    """Shares of held-out terms restored exactly, from 0 to 1."""

    base_term_exact_match: float
    adapter_term_exact_match: float
    other_adapter_term_exact_match: float
    adapter_bytes: int
    seconds: float


@dataclass(frozen=True)
class Example:
    """A text with gaps, how each fills them, and what stood there."""

    text: str
    fillings: dict[str, list[str]]
    truth: list[str]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    seconds: float
    domains: dict[str, DomainResult]
    examples: list[Example]


def run_demo(*, seed: int = 0, progress: bool = False, adapters_dir: Path | None = None) -> DemoResult:
    """Train an adapter for each demo domain, score base, adapter and the other domain's adapter, and fill two texts.

    The domains are trained side by side, each in a process with its share of the cores: so small a model gains little
    from a second core.

    Args:
        seed: of everything that is drawn.
        progress: tell on standard error where each training is.
        adapters_dir: where the adapters and their reports stay; None removes them in the end.
    """
    started = time.monotonic()
    config = replace(DEMO_CONFIG, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        adapters = adapters_dir or Path(scratch) / "adapters"
        results = _train_all(adapters, Path(scratch) / "runs", config, progress=progress)
        base = load_base(BASE)
        restorer = Restorer(base, adapters_dir=adapters)
        domains = {name: load_domain(name) for name in DOMAINS}
        examples = [_example(subject, restorer, name) for name, subject in domains.items()]
        found = {}
        for name, subject in domains.items():
            other = next(domain for domain in domains if domain != name)
            test = _rows(held_out_documents(subject), subject, base)
            found[name] = _domain_result(results[name], _score_with(restorer, other, base, test, config))
    return DemoResult(time.monotonic() - started, found, examples)


def _train_all(adapters: Path, runs: Path, config: TrainingConfig, *, progress: bool) -> dict[str, TrainResult]:
    train = partial(_train, adapters=adapters, runs=runs, config=config, progress=progress)
    threads = max(1, torch.get_num_threads() // len(DOMAINS))
    with ProcessPoolExecutor(
        len(DOMAINS), mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        return dict(zip(DOMAINS, pool.map(train, DOMAINS), strict=True))


def _train(name: str, *, adapters: Path, runs: Path, config: TrainingConfig, progress: bool) -> TrainResult:
    base, subject = load_base(BASE), load_domain(name)
    return train_adapter(
        _prepare(subject, base),
        domain=name,
        glossary=subject.terms(),
        base=base,
        adapters_dir=adapters,
        runs_dir=runs,
        config=config,
        callbacks=[ProgressCallback(label=name, live=False)] if progress else [],
    )


def _prepare(subject: Subject, base: Base) -> DatasetDict:
    parts = {
        "train": training_documents(subject),
        "validation": validation_documents(subject),
        "test": held_out_documents(subject),
    }
    return DatasetDict({name: _rows(texts, subject, base) for name, texts in parts.items()})


def _rows(documents: list[str], subject: Subject, base: Base) -> Dataset:
    return prepare_rows(documents, vocabulary=base.vocabulary, glossary=Glossary(subject.terms()))


def _score_with(restorer: Restorer, adapter: str, base: Base, rows: Dataset, config: TrainingConfig) -> float:
    """Exact match on a domain's test with another domain's adapter."""
    collator = DataCollatorForTermCorruption(base.vocabulary, config.corruption, seed=config.seed)
    test = TermTest.build(rows, collator, limit=config.evaluation_passages)
    with restorer.using(adapter) as model:
        scores = score_terms(model, base, test, collator)
    return scores.exact_match if scores else 0.0


def _domain_result(result: TrainResult, other: float) -> DomainResult:
    if result.base_scores is None or result.adapter_scores is None:
        raise RuntimeError("the demo's test documents hold no term")  # the package's own data are broken
    return DomainResult(
        base_term_exact_match=result.base_scores.exact_match,
        adapter_term_exact_match=result.adapter_scores.exact_match,
        other_adapter_term_exact_match=other,
        adapter_bytes=result.adapter_bytes,
        seconds=round(result.seconds, 1),
    )


def _example(subject: Subject, restorer: Restorer, name: str) -> Example:
    """Of the first held-out documents with terms taken out, the one that the right adapter fills best."""
    glossary = Glossary(subject.terms())
    texts = held_out_documents(subject)[:EXAMPLE_DOCUMENTS]
    gaps = [[(match.start, match.end) for match in glossary.find(text)[1:6:2]] for text in texts]
    truths = [[text[start:end] for start, end in ranges] for text, ranges in zip(texts, gaps, strict=True)]
    filled = restorer.restore(texts, adapter=name, gaps=gaps)
    right = [
        sum(is_exact(truth, gap.text) for truth, gap in zip(own, one.gaps, strict=True)) / max(1, len(own))
        for own, one in zip(truths, filled, strict=True)
    ]
    best = right.index(max(right))
    wrong = next(domain for domain in DOMAINS if domain != name)
    base_filled, wrong_filled = restorer.restore([texts[best]] * 2, adapter=[None, wrong], gaps=[gaps[best]] * 2)
    fillings = {
        who: [gap.text.strip() for gap in restored.gaps]
        for who, restored in {"base": base_filled, name: filled[best], wrong: wrong_filled}.items()
    }
    return Example(with_gaps(texts[best], gaps[best]), fillings, truths[best])
