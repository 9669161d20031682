"""The report's figures, drawn by matplotlib as SVG that takes its fonts and colours from the page.

There are only numbers in a figure: what they mean stands beside it in the page, in either language. Colours are written
as stand-ins and then replaced by the page's variables, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from t5refine_peft.evaluation.history import TrainingHistory
from t5refine_peft.evaluation.metrics import Estimate
from t5refine_peft.evaluation.scores import SystemScores

SERIES_COLOURS = 6
"""So many systems have a colour of their own; further ones begin anew."""
_INK, _MUTED, _PAPER = "#0a0b01", "#0a0b02", "#0a0b03"
_PHASES = {"early": "#0a0b21", "middle": "#0a0b22", "late": "#0a0b23"}
_SERIES = [f"#0a0b1{number}" for number in range(SERIES_COLOURS)]
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _PAPER: "paper",
    **{colour: f"phase-{name}" for name, colour in _PHASES.items()},
    **{colour: f"series-{number}" for number, colour in enumerate(_SERIES)},
}
_SIZE_INCHES = (3.7, 2.35)  # shown at about 350 pixels, so that 8.5 points are about 11 pixels
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "t5refine",  # the same page from the same numbers
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 8.5,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _MUTED,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "text.color": _INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def exact_match(scores: Sequence[SystemScores]) -> str:
    """Exact match of each system with its interval, from the first at the top down."""

    def draw(axes: Axes) -> None:
        for row, system in enumerate(scores):
            _bar(axes, row, system.exact_match, row, height=0.62)
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.set_yticks([])
        axes.set_xlim(0, _upper(part.exact_match.high for part in scores))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False, axis="y")

    return _svg("exact-match", draw)


def by_band(name: str, scores: Sequence[SystemScores], groups: Sequence[Mapping[str, Estimate]]) -> str:
    """Exact match by band, a group of bars for each, with intervals; `groups` holds each system's bands."""
    bands = list(dict.fromkeys(band for group in groups for band in group))

    def draw(axes: Axes) -> None:
        width = 0.8 / len(scores)
        for number, group in enumerate(groups):
            for place, band in enumerate(bands):
                if estimate := group.get(band):
                    centre = place + (number - (len(scores) - 1) / 2) * width
                    axes.bar(centre, estimate.value, width * 0.88, color=_colour(number), linewidth=0)
                    _whisker(axes, centre, estimate, vertical=True)
        axes.set_xticks(range(len(bands)), bands)
        axes.set_ylim(0, _upper(part.high for group in groups for part in group.values()))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False, axis="x")

    return _svg(name, draw)


def calibration(scores: Sequence[SystemScores]) -> str:
    """Accuracy against the answers' own probability; a larger point stands for more answers."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for number, system in enumerate(scores):
            if system.calibration:
                total = sum(part.count for part in system.calibration)
                xs = [part.score for part in system.calibration]
                ys = [part.accuracy for part in system.calibration]
                axes.plot(xs, ys, color=_colour(number), linewidth=1.2)
                sizes = [12 + 180 * part.count / total for part in system.calibration]
                axes.scatter(xs, ys, sizes, color=_colour(number), edgecolors=_PAPER, linewidths=0.8, zorder=3)
        _shares(axes)

    return _svg("calibration", draw)


def coverage(scores: Sequence[SystemScores]) -> str:
    """Accuracy when only the most probable share of the gaps is answered."""

    def draw(axes: Axes) -> None:
        for number, system in enumerate(scores):
            if system.coverage:
                axes.plot(*zip(*system.coverage, strict=True), color=_colour(number))
        _shares(axes)

    return _svg("coverage", draw)


def curves(name: str, history: TrainingHistory, curve_names: Sequence[str], *, percent: bool = False) -> str:
    """Curves by step over the phases of early stopping; a ring marks the step whose weights were kept."""

    def draw(axes: Axes) -> None:
        for phase in history.phases:
            axes.axvspan(phase.start, phase.end, color=_PHASES[phase.name], alpha=0.18, linewidth=0)
        for number, key in enumerate(curve_names):
            points = history.curves[key]
            # The last curve is the one that counts: in the accent colour, and on top.
            last = number == len(curve_names) - 1
            axes.plot(*zip(*points, strict=True), color=_SERIES[1] if last else _SERIES[0], zorder=2 + last)
            best = [point for point in points if point[0] == history.best_step] if last else []
            axes.scatter(
                [step for step, _ in best], [value for _, value in best],
                44, facecolors=_PAPER, edgecolors=_SERIES[1], linewidths=1.8, zorder=4,
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0.02)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return _svg(name, draw)


def _bar(axes: Axes, place: float, estimate: Estimate, number: int, *, height: float) -> None:
    axes.barh(place, estimate.value, height, color=_colour(number), linewidth=0)
    _whisker(axes, place, estimate, vertical=False)
    axes.annotate(
        f"{estimate.value:.1%}",
        (max(estimate.high, estimate.value), place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontweight="bold",
    )


def _whisker(axes: Axes, place: float, estimate: Estimate, *, vertical: bool) -> None:
    """The interval: in ink on a halo of paper, so that it is seen on the bar and off it."""
    error = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
    for colour, width in ((_PAPER, 2.6), (_INK, 1.1)):
        if vertical:
            axes.errorbar(place, estimate.value, yerr=error, fmt="none", ecolor=colour, elinewidth=width, zorder=3)
        else:
            axes.errorbar(estimate.value, place, xerr=error, fmt="none", ecolor=colour, elinewidth=width, zorder=3)


def _shares(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.04, 1.04)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _upper(highs: Iterable[float]) -> float:
    """Upper end of an axis of shares: room for the highest interval and its label."""
    return min(1.25, max(0.05, *highs) * 1.28)


def _colour(number: int) -> str:
    return _SERIES[number % len(_SERIES)]


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """Draw into a figure of its own and give it as an `<svg>` whose ids begin with `name`."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        figure.patch.set_alpha(0.0)
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    whole = stream.getvalue()
    svg = whole[whole.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
