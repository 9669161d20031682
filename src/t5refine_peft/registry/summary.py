"""What an adapter is, in a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t5refine_peft.errors import RefineError
from t5refine_peft.registry.card import read_card
from t5refine_peft.registry.layout import read_layout


@dataclass(frozen=True, kw_only=True)
class AdapterSummary:
    """An adapter among others. A broken one has a fault, and nothing else is known of it."""

    name: str
    base: str | None = None
    """The base that its card names; None without a card."""
    rank: int | None = None
    weights_bytes: int | None = None
    term_exact_match: float | None = None
    """Share of held-out terms it restored, from its card; None where that was not measured."""
    fault: str | None = None
    """What is wrong with its files."""


def summarize(name: str, directory: Path) -> AdapterSummary:
    """Read the headers and the card of an adapter."""
    try:
        layout, card = read_layout(directory), read_card(directory)
    except RefineError as error:
        return AdapterSummary(name=name, fault=str(error))
    base, metrics = card.get("base"), card.get("metrics")
    scores = metrics.get("adapter") if isinstance(metrics, dict) else None
    share = scores.get("exact_match") if isinstance(scores, dict) else None
    return AdapterSummary(
        name=name,
        base=base if isinstance(base, str) else None,
        rank=layout.rank,
        weights_bytes=layout.weights_bytes,
        term_exact_match=float(share) if isinstance(share, int | float) and 0 <= share <= 1 else None,
    )
