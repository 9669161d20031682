"""Results of all arms as a table: shares with their intervals, and each arm against three others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quality_arms import ARMS
from t5refine_peft.evaluation.metrics import interval, paired_difference


def table(results: Mapping[str, Any]) -> str:
    """A section for each domain, an arm a line, averaged over seeds; p values are of `ours` against the line."""
    lines = ["# Strategies compared", "", _head(results), ""]
    for name, domain in results["domains"].items():
        runs = [run for run in results["runs"].values() if run["domain"] == name]
        if not runs:
            continue
        lines += [
            f"## {name}", "",
            f"{len(domain['documents'])} gaps for terms. Exact match with its 95% interval, averaged over seeds.", "",
            "| arm | seeds | exact match | top-5 | never masked | random words | general text | loss on term tokens | "
            "their top-5 | ours removes of its errors | p |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        right = {arm: _mean_right(runs, arm) for arm in ARMS if any(run["arm"] == arm for run in runs)}
        lines += [_line(arm, runs, right, domain["documents"]) for arm in right]
        lines.append("")
    return "\n".join(lines)


def compare(first: Sequence[float], second: Sequence[float], documents: Sequence[int]) -> tuple[float, float]:
    """Share of `second`'s errors that `first` removes, and the p value of their difference."""
    wrong = 1 - float(np.mean(second))
    difference, p_value = paired_difference(first, second, documents)
    return (difference.value / wrong if wrong else 0.0), p_value


def _head(results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"Base {results['base']} ({results['base_fingerprint']}), {results['device']}; {versions}."


def _mean_right(runs: Sequence[Mapping[str, Any]], arm: str) -> list[float]:
    """For each gap the share of seeds in which the arm was right."""
    bits = [[int(bit) for bit in run["right"]] for run in runs if run["arm"] == arm]
    means: list[float] = np.mean(bits, axis=0).tolist()
    return means


def _line(
    arm: str, runs: Sequence[Mapping[str, Any]], right: Mapping[str, Sequence[float]], documents: Sequence[int]
) -> str:
    own = [run for run in runs if run["arm"] == arm]
    estimate = interval(right[arm], documents)
    cells = [ARMS[arm].says, str(len(own)), f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"]
    cells += [_mean(own, key, "{:.1%}") for key in ("top5", "never_masked", "random", "general")]
    cells += [_mean(own, "token_loss", "{:.3f}"), _mean(own, "token_top5", "{:.1%}")]
    if arm != "ours" and "ours" in right:
        removed, p_value = compare(right["ours"], right[arm], documents)
        cells += [f"{removed:.1%}", f"{p_value:.4f}"]
    else:
        cells += ["", ""]
    return "| " + " | ".join(cells) + " |"


def _mean(runs: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    values = [run["scores"][key] for run in runs if run["scores"].get(key) is not None]
    return form.format(float(np.mean(values))) if values else ""
