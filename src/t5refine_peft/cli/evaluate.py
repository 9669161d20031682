"""`t5refine evaluate`: base and adapters on one frozen test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t5refine_peft.cli import options
from t5refine_peft.cli.tables import print_table

if TYPE_CHECKING:
    from t5refine_peft.evaluation.metrics import Estimate
    from t5refine_peft.evaluation.scores import EvaluationReport


def evaluate(
    data: Annotated[
        Path,
        typer.Option(help="JSONL with 'inputs' and 'targets', or a prepared directory, of which the test split."),
    ],
    adapter: Annotated[
        list[str] | None, typer.Option(help="An adapter to score beside the base; may be given several times.")
    ] = None,
    base: options.CardBase = None,
    adapters_dir: options.AdaptersDir = Path("adapters"),
    terms: Annotated[
        Path | None, typer.Option(help="A term list, to tell terms from other gaps where the JSONL doesn't say.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the report, an HTML page, here.")] = None,
    examples: options.Examples = False,
    device: options.Device = None,
    seed: options.Seed = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Put the same questions to a base and its adapters, and compare what they restore.

    A term that stands several times in a passage is masked everywhere in half of the questions, and once in the others;
    what `train` reports is of terms masked everywhere, so its figures are a little different.

    Example: t5refine evaluate --data prepared --adapter cardiology --output report.html
    """
    options.stay_offline(offline)
    from t5refine_peft.evaluation.evaluate import evaluate as ask_all
    from t5refine_peft.evaluation.report import render_report
    from t5refine_peft.storage import atomic_file

    base = base or options.base_for(adapter[0] if adapter else None, adapters_dir)
    report = ask_all(
        data, base=base, adapters=adapter or [], adapters_dir=adapters_dir, glossary=terms, device=device, seed=seed
    )
    if output is not None:
        with atomic_file(output) as staged:
            title = ", ".join(adapter) if adapter else base
            staged.write_text(render_report(report, title=title, examples=examples), encoding="utf-8")
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _print(report)


def _print(report: EvaluationReport) -> None:
    """Scores by system, a line each, and below what is known of the differences."""
    gaps = report.scores[0].exact_match.count
    print_table(
        (f"{gaps} gaps", "exact match", "top-5", "CER", "chrF", "random", "general", "calib. error"),
        (
            (
                s.system,
                _interval(s.exact_match),
                _share(s.top5),
                f"{s.character_error_rate:.2f}",
                f"{s.chrf:.1f}",
                _share(s.random_exact_match),
                _share(s.general_exact_match),
                "-" if s.calibration_error is None else f"{s.calibration_error:.3f}",
            )
            for s in report.scores
        ),
    )
    for comparison in report.comparisons:
        print(
            f"{comparison.system} - {comparison.against}: {100 * comparison.difference.value:+.1f} points "
            f"({100 * comparison.difference.low:+.1f} to {100 * comparison.difference.high:+.1f}), "
            f"p = {comparison.p_value:.4f}, {comparison.errors_removed:.0%} of the errors removed"
        )


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%}-{estimate.high:.1%})"


def _share(value: Estimate | float | None) -> str:
    return "-" if value is None else f"{value if isinstance(value, float) else value.value:.1%}"
