"""Whether an adapter fits a base: seen from names, fingerprints and shapes, before a weight is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t5refine_peft.errors import RefineError
from t5refine_peft.registry.files import short
from t5refine_peft.registry.layout import AdapterLayout


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """What an adapter has to fit: `modeling.identity` reads it of a base in memory or on disk."""

    name: str
    """As the user gave it."""
    fingerprint: str
    """Of the weights."""
    tokenizer_fingerprint: str
    layers: Mapping[str, tuple[int, int]]
    """(out_features, in_features) of each linear layer but the head, by its name in the model."""


def check_fit(name: str, layout: AdapterLayout, card: Mapping[str, Any], base: BaseIdentity) -> None:
    """Refuse an adapter that was made for another base or tokenizer, or whose matrices do not lie on the base's.

    An adapter without a card, which another program made, is judged by its matrices alone.

    Raises:
        RefineError: it doesn't fit.
    """
    made_for = card.get("base_fingerprint", base.fingerprint)
    if made_for != base.fingerprint:
        raise RefineError(
            f"the adapter {name!r} was trained on the base {short(card.get('base'))} (weights {short(made_for)}), "
            f"not on {base.name!r} (weights {base.fingerprint}); give its own base, or train it on this one"
        )
    tokenizer = card.get("tokenizer_fingerprint", base.tokenizer_fingerprint)
    if tokenizer != base.tokenizer_fingerprint:
        raise RefineError(
            f"the adapter {name!r} was trained with the tokenizer {short(tokenizer)}, but {base.name!r} has "
            f"{base.tokenizer_fingerprint!r}; give the base with the tokenizer it was trained with"
        )
    faults = _misfits(layout, base.layers)
    if faults:
        raise RefineError(
            f"the adapter {name!r} does not fit the base {base.name!r}: {faults[0]}"
            + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
            + "; give the base that it was trained on"
        )


def _misfits(layout: AdapterLayout, layers: Mapping[str, tuple[int, int]]) -> list[str]:
    """What does not lie on the base's layers; PEFT would leave some of it out, or fail half-way."""
    matched = {target: {name for name in layers if f".{name}".endswith(f".{target}")} for target in layout.targets}
    faults = [f"it has no layer {target}" for target, found in sorted(matched.items()) if not found]
    for name, shape in layout.layers.items():
        if name not in layers:
            faults.append(f"the base has no linear layer {name}")
        elif layers[name] != shape:
            faults.append(f"{name} is {layers[name]} in the base and {shape} in the adapter")
    wanted = set().union(*matched.values())
    faults += [f"the adapter has no weights for {name}" for name in sorted(wanted - layout.layers.keys())]
    faults += [
        f"{name} is none of its target_modules" for name in sorted((layout.layers.keys() & layers.keys()) - wanted)
    ]
    return faults
