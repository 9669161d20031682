"""One self-contained page on an evaluation, and on the training run before it where there was one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from t5refine_peft.corpus.characters import written_without_spaces
from t5refine_peft.corpus.pairs import SENTINEL
from t5refine_peft.evaluation import plots
from t5refine_peft.evaluation.history import TrainingHistory
from t5refine_peft.evaluation.metrics import is_exact
from t5refine_peft.evaluation.scores import Comparison, EvaluationReport, SystemScores, headline_gaps

EXAMPLES = 20


@dataclass(frozen=True)
class _Example:
    """A question as it is shown.

    Attributes:
        parts: visible text and truths in turn.
        systems: each system's name and, for each gap, its filling and whether that is right.
    """

    parts: tuple[str, ...]
    systems: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]


def render_report(
    report: EvaluationReport | None,
    *,
    title: str,
    log_history: Sequence[Mapping[str, Any]] = (),
    best_step: int | None = None,
    steps: int | None = None,
    stopped_because: str = "",
    confidence: Mapping[str, Any] | None = None,
    examples: bool = False,
) -> str:
    """Draw the page: HTML in English and Chinese, light and dark, without scripts and without the network.

    Args:
        report: the evaluation; None where there was nothing to ask.
        title: the page's heading, an adapter's name mostly.
        log_history: `state.log_history` of the Trainer, for the curves and the verdicts of early stopping.
        best_step: the step whose weights were kept.
        steps: how many steps training took.
        stopped_because: why it ended then.
        confidence: what `measure_confidence` found.
        examples: show twenty questions with every system's answers. They hold text of the test documents; without them
            the page holds terms and fillings only.
    """
    environment = Environment(
        loader=PackageLoader("t5refine_peft.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        pct=lambda share: f"{share:.1%}", pct0=lambda share: f"{share:.0%}", p_value=_p_value, get_item=_get_item
    )
    environment.tests["known"] = lambda value: value is not None
    best, comparison = _best(report)
    history = TrainingHistory.of(log_history, best_step=best_step)
    return environment.get_template("report.html.jinja").render(
        report=report,
        title=title,
        language=_language(report),
        of_terms=report is not None and _of_terms(report),
        best=best,
        comparison=comparison,
        colours=plots.SERIES_COLOURS,
        plots=_plots(report, history),
        most_missed=_missed(report),
        history=history,
        steps=steps,
        stopped_because=stopped_because,
        calibration=(confidence or {}).get("calibration"),
        detection=(confidence or {}).get("detection"),
        examples=_examples(report) if report is not None and examples else [],
    )


def _plots(report: EvaluationReport | None, history: TrainingHistory) -> dict[str, Any]:
    losses = [key for key in ("loss", "eval_loss") if key in history.curves]
    metrics = [key for key in history.curves if key not in losses and key.endswith(("exact_match", "accuracy"))]
    drawn: dict[str, Any] = {
        "loss": plots.curves("loss", history, losses) if losses else None,
        "metrics": [(key, plots.curves(key.replace("_", "-"), history, [key], percent=True)) for key in metrics],
    }
    if report is not None:
        scores = report.scores
        frequency, length = [part.by_frequency for part in scores], [part.by_length for part in scores]
        copies = [part.by_copies for part in scores]
        scored = any(part.calibration for part in scores)
        drawn |= {
            "exact_match": plots.exact_match(scores),
            "by_frequency": plots.by_band("by-frequency", scores, frequency) if any(frequency) else None,
            "by_length": plots.by_band("by-length", scores, length) if any(length) else None,
            "by_copies": plots.by_band("by-copies", scores, copies) if any(copies) else None,
            "calibration": plots.calibration(scores) if scored else None,
            "coverage": plots.coverage(scores) if scored else None,
        }
    return drawn


def _best(report: EvaluationReport | None) -> tuple[SystemScores, Comparison] | tuple[None, None]:
    """The best of the systems that are compared with the first: the sentence at the top is about it."""
    if report is None or not report.comparisons:
        return None, None
    pairs = zip(report.scores[1:], report.comparisons, strict=True)
    return max(pairs, key=lambda pair: pair[0].exact_match.value)


def _missed(report: EvaluationReport | None) -> list[tuple[str, Any]]:
    """For each system but the first, or for the only one, the terms that it missed most often."""
    if report is None or not _of_terms(report):
        return []
    found = [(scores.system, report.missed_terms(scores.system)) for scores in report.scores[1:] or report.scores]
    return [(system, terms) for system, terms in found if terms]


def _of_terms(report: EvaluationReport) -> bool:
    gaps = headline_gaps(report.questions)
    return bool(gaps) and report.questions.blanks[gaps[0]][1].kind == "term"


def _examples(report: EvaluationReport) -> list[_Example]:
    """Questions of the domain, spread evenly over the set."""
    starts = {}
    at = 0
    for question in report.questions.questions:
        if question.part == "domain":
            starts[question] = at
        at += len(question.blanks)
    asked = {report.questions.blanks[gap][0] for gap in headline_gaps(report.questions)}
    questions = [question for question in starts if question in asked]
    step = max(1, len(questions) // EXAMPLES)
    shown = []
    for question in questions[::step][:EXAMPLES]:
        visible = SENTINEL.split(question.text)[::2]
        truths = [blank.truth for blank in question.blanks]
        parts = [part for pair in zip(visible, [*truths, ""], strict=True) for part in pair][:-1]
        systems = []
        for scores in report.scores:
            answers = report.answers[scores.system][starts[question] : starts[question] + len(truths)]
            texts = [candidates[0].text if candidates else "" for candidates in answers]
            pairs = zip(truths, texts, strict=True)
            systems.append((scores.system, tuple((text, is_exact(truth, text)) for truth, text in pairs)))
        shown.append(_Example(tuple(parts), tuple(systems)))
    return shown


def _language(report: EvaluationReport | None) -> str:
    """The language that the page opens in: Chinese where most answers are written in Han characters."""
    truths = [blank.truth for _, blank in report.questions.blanks] if report is not None else []
    without_spaces = sum(written_without_spaces(truth[0]) for truth in truths)
    return "zh" if without_spaces * 2 > len(truths) else "en"


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _get_item(mapping: Mapping[str, Any], key: str) -> Any:
    return mapping.get(key)
