"""One page on a training run: what the adapter restores, and how it got there. It holds no text of the corpus."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{domain}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }}
blockquote {{ font-size: 1.3rem; margin: 1.5rem 0; padding-left: 1rem; border-left: 4px solid #2a7; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: right; padding: .3rem .5rem; border-bottom: 1px solid #8884; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ width: 100%; height: auto; }}
</style></head><body>
<h1>{domain}</h1>
<blockquote>{quote}</blockquote>
<table><tr><th>held-out terms</th><th>base</th><th>adapter</th></tr>{scores}</table>
{confidence}
<h2>Validation loss</h2>
{curve}
<p>{ending}</p>
</body></html>
"""


def render_report(card: dict[str, Any], history: Sequence[tuple[int, float]]) -> str:
    """Draw the page.

    Args:
        card: the adapter's card.
        history: (step, validation loss) of each evaluation.
    """
    before, after = card["metrics"]["base"], card["metrics"]["adapter"]
    if before and after:
        quote = (
            f"The adapter restores {after['exact_match']:.0%} of {after['gaps']} held-out terms exactly; "
            f"the base restores {before['exact_match']:.0%}."
        )
    else:
        quote = "The adapter was trained without a glossary, so no term was scored."
    scores = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{before[name]:.4g}</td><td>{after[name]:.4g}</td></tr>"
        for name in (before or {})
    )
    ending = f"Best at step {card['best_step']}; {card['stopped_because']} after step {card['steps']}."
    return _PAGE.format(
        domain=html.escape(card["domain"]),
        quote=html.escape(quote),
        scores=scores,
        confidence=_confidence(card.get("calibration"), card.get("detection")),
        curve=_curve(history),
        ending=html.escape(ending),
    )


def _confidence(calibration: dict[str, Any] | None, detection: dict[str, Any] | None) -> str:
    """How far scores and findings can be trusted, in tables; nothing where it was not measured."""
    parts = []
    if calibration:
        rows = "".join(
            f"<tr><td>{score:.0%}</td><td>{share:.0%}</td><td>{count}</td></tr>"
            for score, share, count in calibration["curve"]
        )
        parts.append(
            "<h2>Can its scores be trusted?</h2><table><tr><th>mean score</th><th>answers that are right</th>"
            f"<th>answers</th></tr>{rows}</table><p>Expected calibration error on {calibration['gaps']} held-out gaps: "
            f"{calibration['error_before']:.3f} before, {calibration['error_after']:.3f} at the temperature "
            f"{calibration['temperature']:.2f}, fitted on {calibration['fitted_gaps']} other gaps.</p>"
        )
    if detection:
        parts.append(
            f"<p>Damage without marks: of {detection['words']} held-out words, {detection['damaged']} of them damaged, "
            f"it finds {detection['recall']:.0%} of the damaged ones; {detection['precision']:.0%} of its findings are "
            "damage.</p>"
        )
    return "".join(parts)


def _curve(history: Sequence[tuple[int, float]]) -> str:
    if len(history) < 2:
        return "<p>Fewer than two evaluations: no curve.</p>"
    steps, losses = zip(*history, strict=True)
    low, high = min(losses), max(losses)
    width, height = 600, 200
    points = " ".join(
        f"{40 + (width - 60) * step / max(steps):.1f},{20 + (height - 50) * (high - loss) / ((high - low) or 1):.1f}"
        for step, loss in history
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="validation loss by step">'
        f'<polyline points="{points}" fill="none" stroke="#2a7" stroke-width="2"/>'
        f'<g font-size="12" fill="currentColor"><text x="0" y="24">{high:.2f}</text>'
        f'<text x="0" y="{height - 26}">{low:.2f}</text><text x="{width - 20}" y="{height - 8}" text-anchor="end">'
        f"step {max(steps)}</text></g></svg>"
    )
