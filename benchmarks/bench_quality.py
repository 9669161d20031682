"""Which strategy restores most terms? Every arm on the same passages, steps and frozen questions.

    python benchmarks/bench_quality.py --data DATA --domain zh_medical --domain en_medical --arm main --seed 0 --seed 1

The theory: what an adapter learns of a domain's terms depends on how often, and how freshly, it has to restore them
without a copy in sight; padding in the loss teaches nothing and hides a loss that still falls; and a frozen base with
LoRA on all linear layers learns as much as full fine-tuning at these sizes. Each arm takes one of these away.

Arms are named in `quality_arms.py`; `main`, `ablation` and `all` are groups. Each finished run is written to the
results at once, and a run that is there already, with the same settings, base and questions, is not done again: stop
it and start it as you like. `cardiology` and `contract_law` are the demo's domains, and need no data.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch

import quality_data
from frequency_baseline import FrequencyBaseline
from quality_arms import ARMS, GROUPS, Arm, Schedule
from quality_data import Domain
from quality_table import table
from quality_training import train
from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, load_base
from t5refine_peft.evaluation.evaluate import evaluate, score_terms
from t5refine_peft.evaluation.metrics import Estimate
from t5refine_peft.evaluation.scores import exact, headline_gaps
from t5refine_peft.modeling.base import Base
from t5refine_peft.storage import atomic_file

RESULTS = Path(__file__).parent / "results" / "quality.json"
VERSIONS_OF = ("torch", "transformers", "peft", "sentencepiece")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    datasets.disable_progress_bars()
    base = load_base(options.base, device=options.device)
    schedule = Schedule(steps=options.steps, batch=options.batch, tokens=options.tokens)
    collator = DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig())
    results = _read(options.results)
    results |= {
        "base": options.base,
        "base_fingerprint": base.fingerprint,
        "device": torch.cuda.get_device_name() if base.device.type == "cuda" else f"{platform.machine()} CPU",
        "versions": {name: version(name) for name in VERSIONS_OF},
    }
    arms = list(dict.fromkeys(arm for name in options.arm for arm in GROUPS.get(name, (ARMS.get(name),)) if arm))
    for name in options.domain:
        domain = quality_data.load(
            name, options.data, base.vocabulary, collator, tokens=options.tokens, limit=options.limit
        )
        asked = domain.questions.fingerprint
        results["runs"] = {  # answers to other questions, and arms that were something else, can't be compared
            key: run
            for key, run in results["runs"].items()
            if _is_of(ARMS.get(run["arm"]), run) and (run["domain"] != name or run["settings"]["questions"] == asked)
        }
        gaps = headline_gaps(domain.questions)
        numbers: dict[str, int] = {}
        results["domains"][name] = {
            "questions_fingerprint": asked,
            "documents": [numbers.setdefault(domain.questions.blanks[gap][0].document, len(numbers)) for gap in gaps],
        }
        for seed in options.seed:
            for arm in arms:
                settings = _settings(arm, schedule, base, domain, options.candidates)
                key = f"{name}/{arm.name}/{0 if arm.untrained else seed}"
                if results["runs"].get(key, {}).get("settings") == settings:
                    continue
                results["runs"][key] = {
                    "domain": name, "arm": arm.name, "seed": seed, "settings": settings,
                    **run(arm, base, domain, schedule, collator, seed=seed, candidates=options.candidates),
                }  # fmt: skip
                scores = results["runs"][key]["scores"]
                print(f"{key}: {scores['exact_match']:.1%} exact, {results['runs'][key]['seconds']} s", flush=True)
                _write(options.results, results)
    print(table(results))


def run(
    arm: Arm,
    base: Base,
    domain: Domain,
    schedule: Schedule,
    collator: DataCollatorForTermCorruption,
    *,
    seed: int,
    candidates: int,
) -> dict[str, Any]:
    """Train an arm where there is something to train, and score it."""
    started = time.monotonic()
    training: dict[str, Any] = {}
    token_scores = None
    if arm.untrained == "frequency":
        name = arm.name
        baseline = FrequencyBaseline(domain.splits["train"], base.vocabulary)
        report = evaluate(domain.questions, systems={name: baseline}, seed=seed)
    else:
        name, model = "base", base
        if arm.untrained is None:
            trained = train(arm, base, domain, schedule, seed=seed)
            model = trained.base
            training = {
                "steps": trained.steps,
                "best_step": trained.best_step,
                "passages": trained.passages,
                "trained_parameters": trained.trained_parameters,
                "history": [(step, round(loss, 5)) for step, loss in trained.history],
            }
        report = evaluate(domain.questions, base=model, num_candidates=candidates, seed=seed)
        token_scores = score_terms(model.model, base, domain.term_test, collator)
    scores = report.scores[0]
    right = exact(domain.questions, report.answers[name], headline_gaps(domain.questions))
    return {
        "seconds": round(time.monotonic() - started),
        "training": training,
        "right": "".join(str(int(hit)) for hit in right),
        "scores": {
            "exact_match": scores.exact_match.value,
            "macro_exact_match": scores.macro_exact_match,
            "top5": scores.top5,
            "character_error_rate": scores.character_error_rate,
            "chrf": scores.chrf,
            "calibration_error": scores.calibration_error,
            "never_masked": _value(scores.never_masked),
            "random": _value(scores.random_exact_match),
            "general": _value(scores.general_exact_match),
            "by_frequency": {band: part.value for band, part in scores.by_frequency.items()},
            "by_copies": {band: part.value for band, part in scores.by_copies.items()},
            "token_loss": token_scores.token_loss if token_scores else None,
            "token_top5": token_scores.token_top5 if token_scores else None,
        },
    }


def _settings(arm: Arm, schedule: Schedule, base: Base, domain: Domain, candidates: int) -> dict[str, Any]:
    """What a result depends on."""
    settings = {
        "arm": asdict(arm),
        "schedule": None if arm.untrained else asdict(schedule),
        "base": base.fingerprint,
        "candidates": candidates,
        "questions": domain.questions.fingerprint,
    }
    return _plain(settings)


def _is_of(arm: Arm | None, run: dict[str, Any]) -> bool:
    """Whether a run that was read is one of the arm as it is now."""
    return arm is not None and bool(run["settings"]["arm"] == _plain(asdict(arm)))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"domains": {}, "runs": {}}
    return found | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = json.dumps(results, ensure_ascii=False, indent=1)
    for file, text in ((path, whole), (path.with_suffix(".md"), table(results))):
        with atomic_file(file) as staged:
            staged.write_text(text + "\n", encoding="utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", action="append", required=True, help="may be given several times")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the domains' directories lie")
    parser.add_argument("--arm", action="append", choices=[*GROUPS, *ARMS], help="main, where none is given")
    parser.add_argument("--seed", type=int, action="append", help="0, where none is given")
    parser.add_argument("--base", default="builtin:mt5-mini")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="longest passage")
    parser.add_argument("--limit", type=int, default=400, help="questions of a kind")
    parser.add_argument("--candidates", type=int, default=5, help="fillings a gap; 1 decodes greedily, without top-5")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.arm, options.seed = options.arm or ["main"], options.seed or [0]
    return options


if __name__ == "__main__":
    main()
