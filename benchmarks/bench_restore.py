"""What restoration costs beside the plain way, and whether its answers can be trusted.

    python benchmarks/bench_restore.py                   # trains the two demo adapters in full first
    python benchmarks/bench_restore.py --max-steps 40 --gaps 200 --texts 60      # a quick look

Theory. To choose an adapter changes no weight, so a swap should take microseconds, where reloading reads files. A batch
of eight domains adds two small batched products a layer to what one domain does, so it should cost little more. The
plain way (`generate` text by text, `set_adapter` between domains) pays PyTorch's overhead a call once a text and token;
batches share it. Temperature scaling has one parameter, fitted on validation text: it can't know how much harder
wordings are that training never showed, so the error on held-out text is the honest one.

On a CPU the times are CPU seconds of this process, so that other programs don't count; on a GPU wall-clock seconds.
The result goes to `benchmarks/results/restore.json`, with versions and device.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel

from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, Glossary, Restorer, load_base, train_adapter
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.demo.generator import Subject
from t5refine_peft.demo.run import BASE, DEMO_CONFIG
from t5refine_peft.demo.texts import DOMAINS, load_domain, training_documents, validation_documents
from t5refine_peft.evaluation.confidence import answers_by_temperature, judge_damaged
from t5refine_peft.evaluation.evaluate import TermTest
from t5refine_peft.evaluation.metrics import calibration, calibration_error
from t5refine_peft.modeling.base import Base
from t5refine_peft.restoration.detection import precision_recall
from t5refine_peft.restoration.gaps import Gap
from t5refine_peft.restoration.spacing import normalized
from t5refine_peft.restoration.windows import make_windows

RESULTS = Path(__file__).parent / "results" / "restore.json"
_MAX_GAP_TOKENS = 12
"""Longer than any term of the demo's; the plain way gets as many a gap."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/restore"), help="adapters and checkpoints")
    parser.add_argument("--device", default=None)
    parser.add_argument(
        "--max-steps",
        type=int,
        default=DEMO_CONFIG.max_steps,
        help="of training each demo adapter; 0 takes what --work has",
    )
    parser.add_argument("--gaps", type=int, default=2000, help="held-out gaps for calibration and the glossary")
    parser.add_argument("--texts", type=int, default=500, help="mixed texts for speed")
    parser.add_argument("--plain-texts", type=int, default=None, help="of these, how many the plain way restores")
    options = parser.parse_args()
    base = load_base(BASE, device=options.device)
    subjects = {name: load_domain(name) for name in DOMAINS}
    adapters = options.work / "adapters"
    for name, subject in subjects.items():
        if options.max_steps:
            _train(name, subject, base, options.work, options.max_steps)
    seconds, count = clock_of(base), options.texts
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "swap": lambda: swap(base, adapters, seconds),
        "eight domains": lambda: eight_domains(base, adapters, subjects, min(64, count), seconds),
        "speed": lambda: speed(base, adapters, subjects, count, options.plain_texts or count, seconds),
        **{name: partial(trust, base, adapters, name, subject, options.gaps) for name, subject in subjects.items()},
    }
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        found[name] = measure()
        print(name, json.dumps(found[name], ensure_ascii=False), flush=True)
    found["setup"] = {
        "base": BASE,
        "base_fingerprint": base.fingerprint,
        "training_steps": {name: _card(adapters, name)["steps"] for name in subjects},
        "seconds": "wall-clock" if base.device.type == "cuda" else "CPU",
        "precision": base.precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if base.device.type == "cuda" else f"{platform.machine()} CPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def clock_of(base: Base) -> Callable[[Callable[[], object]], float]:
    """Seconds that a call takes."""

    def seconds(call: Callable[[], object]) -> float:
        clock = time.perf_counter if base.device.type == "cuda" else time.process_time
        started = clock()
        call()
        if base.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    return seconds


def _train(name: str, subject: Subject, base: Base, work: Path, max_steps: int) -> None:
    rows = {
        split: prepare_rows(texts, vocabulary=base.vocabulary, glossary=Glossary(subject.terms()))
        for split, texts in {
            "train": training_documents(subject),
            "validation": validation_documents(subject),
            "test": list(subject.documents(50, split="test", seed=0)),
        }.items()
    }
    train_adapter(
        datasets.DatasetDict(rows),
        domain=name,
        glossary=subject.terms(),
        base=base,
        adapters_dir=work / "adapters",
        runs_dir=work / "runs",
        config=replace(DEMO_CONFIG, max_steps=max_steps, eval_steps=max(1, max_steps // 2), device=str(base.device)),
    )


def swap(base: Base, adapters: Path, seconds: Callable[[Callable[[], object]], float]) -> dict[str, float]:
    """To change between two adapters in memory, beside loading base and adapter."""
    restorer = Restorer(base, adapters_dir=adapters)
    for name in DOMAINS:
        restorer.load_adapter(name)

    def there_and_back() -> None:
        for _ in range(500):
            for name in DOMAINS:
                with restorer.using(name):
                    pass

    swapped = seconds(there_and_back) / 1000
    _unload(restorer)

    def load() -> None:
        Restorer(BASE, adapters_dir=adapters, device=str(base.device)).load_adapter(DOMAINS[0])

    loaded = min(seconds(load) for _ in range(3))
    return {"swap_ms": 1e3 * swapped, "load_ms": 1e3 * loaded, "times_as_fast": loaded / swapped}


def eight_domains(
    base: Base,
    adapters: Path,
    subjects: dict[str, Subject],
    count: int,
    seconds: Callable[[Callable[[], object]], float],
) -> dict[str, float]:
    """One batch of eight adapters beside the same batch of one; the eight are copies, so that all answers are alike."""
    name = DOMAINS[0]
    texts, ranges, _ = questions(subjects[name], count)
    with tempfile.TemporaryDirectory() as scratch:
        names = [f"{name}-{number}" for number in range(8)]
        for copy in names:
            shutil.copytree(adapters / name, Path(scratch) / copy)
        restorer = Restorer(base, adapters_dir=scratch, encoder_cache_bytes=0)
        kinds: dict[str, list[str]] = {
            "one": [names[0]] * len(texts),
            "eight": [names[number % 8] for number in range(len(texts))],
        }

        def restore(kind: str) -> Callable[[], object]:
            return lambda: restorer.restore(
                texts, gaps=ranges, adapter=kinds[kind], max_gap_tokens=_MAX_GAP_TOKENS, batch_tokens=10**6
            )

        for kind in kinds:
            restore(kind)()
        rounds = [{kind: seconds(restore(kind)) for kind in kinds} for _ in range(5)]  # by turns
        _unload(restorer)
    one, eight = (float(np.median([each[kind] for each in rounds])) for kind in kinds)
    return {"texts": len(texts), "one_seconds": one, "eight_seconds": eight, "ratio": eight / one}


def speed(
    base: Base,
    adapters: Path,
    subjects: dict[str, Subject],
    count: int,
    plain_count: int,
    seconds: Callable[[Callable[[], object]], float],
) -> dict[str, float]:
    """Gaps a second on texts of both domains by turns, beside the plain way and beside reloading from disk."""
    parts = [questions(subject, count // 2) for subject in subjects.values()]
    texts = [text for pair in zip(parts[0][0], parts[1][0], strict=True) for text in pair]
    ranges = [own for pair in zip(parts[0][1], parts[1][1], strict=True) for own in pair]
    names = [name for _ in parts[0][0] for name in subjects]
    gaps = sum(map(len, ranges))
    restorer = Restorer(base, adapters_dir=adapters, encoder_cache_bytes=0)
    for name in subjects:
        restorer.load_adapter(name)
    restored = {}

    def ours() -> None:
        restored["ours"] = restorer.restore(texts, gaps=ranges, adapter=names, max_gap_tokens=_MAX_GAP_TOKENS)

    ours_seconds = seconds(ours)
    _unload(restorer)
    plain_gaps = sum(map(len, ranges[:plain_count]))
    model = PeftModel.from_pretrained(base.model, str(adapters / DOMAINS[0]), adapter_name=DOMAINS[0]).eval()
    model.load_adapter(str(adapters / DOMAINS[1]), adapter_name=DOMAINS[1])
    part = list(zip(texts, ranges, names, strict=True))[:plain_count]
    plain_seconds = seconds(lambda: [_plain(model, base, *item) for item in part])
    few = part[:20]
    reload_seconds = seconds(lambda: [_plain(model, base, *item, reload=adapters) for item in few])
    model.unload()
    few_gaps = sum(len(own) for _, own, _ in few)
    result = {
        "texts": len(texts),
        "gaps": gaps,
        "gaps_a_second": gaps / ours_seconds,
        "plain_texts": len(part),
        "plain_gaps_a_second": plain_gaps / plain_seconds,
        "reloading_texts": len(few),
        "reloading_gaps_a_second": few_gaps / reload_seconds,
    }
    return {**result, "times_as_fast": result["gaps_a_second"] / result["plain_gaps_a_second"]}


def _plain(
    model: PeftModel,
    base: Base,
    text: str,
    ranges: Sequence[tuple[int, int]],
    adapter: str,
    *,
    reload: Path | None = None,
) -> None:
    """One text as one would write it without this library."""
    if reload is None:
        model.set_adapter(adapter)
    else:
        model.delete_adapter(adapter)
        model.load_adapter(str(reload / adapter), adapter_name=adapter)
        model.set_adapter(adapter)
    (window,) = make_windows(text, [Gap(*own) for own in ranges], base.vocabulary)
    with torch.inference_mode(), base.autocast():
        model.generate(
            input_ids=torch.from_numpy(window.input_ids)[None].to(base.device),
            max_new_tokens=len(ranges) * (_MAX_GAP_TOKENS + 1) + 1,
            num_beams=1,
            do_sample=False,
        )


def questions(subject: Subject, count: int) -> tuple[list[str], list[list[tuple[int, int]]], list[list[str]]]:
    """Held-out documents with up to three different terms taken out, wherever they stand: texts, ranges, truths."""
    glossary = Glossary(subject.terms())
    texts, ranges, truths = [], [], []
    for text in subject.documents(3 * count, split="test", seed=7):
        matches = glossary.find(text)
        chosen = list(dict.fromkeys(match.term for match in matches))[::2][:3]
        own = [(match.start, match.end) for match in matches if match.term in chosen]
        if own and len(texts) < count:
            texts.append(text)
            ranges.append(own)
            truths.append([text[start:end] for start, end in own])
    return texts, ranges, truths


def trust(base: Base, adapters: Path, name: str, subject: Subject, gaps: int) -> dict[str, Any]:
    """Calibration, glossary and damage on held-out documents, by the settings in the adapter's card."""
    glossary = Glossary(subject.terms())
    documents = list(subject.documents(2 * gaps, split="test", seed=11))
    rows = prepare_rows(documents, vocabulary=base.vocabulary, glossary=glossary)
    collator = DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig(), seed=5)
    asked, count = [], 0
    for example in TermTest.build(rows, collator, limit=len(rows)).examples:
        if count < gaps:
            asked.append(example)
            count += len(example.spans)
    card = _card(adapters, name)
    temperature, threshold = card["calibration"]["temperature"], card["detection"]["threshold"]
    restorer = Restorer(base, adapters_dir=adapters)
    with restorer.using(name) as model, torch.inference_mode(), base.autocast():
        logs, right = answers_by_temperature(model, base, asked, (1.0, temperature))
        judged = judge_damaged(model, base, documents[:150], seed=[3])
    before, after = np.exp(logs).T
    precision, recall = precision_recall(*judged, threshold)
    texts, ranges, truths = questions(subject, gaps // 2)
    terms: dict[str, Any] = {}
    for how, bias in {"free": None, "favoured by 4 nats": 4.0, "strict": float("inf")}.items():
        restored = restorer.restore(
            texts,
            gaps=ranges,
            adapter=name,
            glossary=None if bias is None else glossary,
            glossary_bias=bias or 1.0,
            max_gap_tokens=_MAX_GAP_TOKENS,
        )
        pairs = [
            (gap.text, truth)
            for one, own in zip(restored, truths, strict=True)
            for gap, truth in zip(one.gaps, own, strict=True)
        ]
        known = {normalized(term) for term in glossary.terms}
        terms[how] = {
            "exact_match": float(np.mean([normalized(text) == normalized(truth) for text, truth in pairs])),
            "outside_the_glossary": sum(normalized(text) not in known for text, _ in pairs),
        }
    _unload(restorer)
    return {
        "adapter": card["metrics"]["adapter"],
        "calibration": {
            "gaps": len(right),
            "right": float(right.mean()),
            "temperature": temperature,
            "error_before": calibration_error(calibration(before, right)),
            "error_after": calibration_error(calibration(after, right)),
            "curve_before": [astuple(part) for part in calibration(before, right)],
            "curve_after": [astuple(part) for part in calibration(after, right)],
        },
        "detection": {
            "threshold": threshold,
            "precision": precision,
            "recall": recall,
            "words": len(judged[1]),
            "damaged": int(judged[1].sum()),
        },
        "glossary": {"gaps": len(pairs), **terms},
    }


def _card(adapters: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapters / name / "card.json").read_text(encoding="utf-8"))
    return found


def _unload(restorer: Restorer) -> None:
    for name in restorer.adapters:
        restorer.delete_adapter(name)


if __name__ == "__main__":
    main()
