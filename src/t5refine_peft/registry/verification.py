"""Read an adapter through and compare it with what its card says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import deserialize

from t5refine_peft.errors import RefineError
from t5refine_peft.registry.card import ADAPTER_FINGERPRINT, adapter_fingerprint, read_card
from t5refine_peft.registry.files import WEIGHTS_FILE, short
from t5refine_peft.registry.fit import BaseIdentity, check_fit
from t5refine_peft.registry.layout import AdapterLayout, read_layout

_EXPONENTS = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
"""Where a number's exponent is all ones, it is infinite or none at all. numpy has no bf16, so bits are looked at."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found sound of an adapter; what was not raises a `RefineError`."""

    layout: AdapterLayout
    fingerprint: str
    """Of its weights and configuration."""
    recorded: bool
    """Whether its card holds the fingerprint; it does for every adapter of this library."""
    base: str | None
    """The base that it fits: weights, tokenizer and matrices agree; None where none was given."""


def verify_adapter(name: str, directory: Path, base: BaseIdentity | None) -> Verification:
    """See `AdapterRegistry.verify`."""
    layout, card = read_layout(directory), read_card(directory)
    if base is not None:
        check_fit(name, layout, card, base)
    check_numbers(directory / WEIGHTS_FILE)
    fingerprint = adapter_fingerprint(directory)
    recorded = card.get(ADAPTER_FINGERPRINT)
    if recorded is not None and recorded != fingerprint:
        raise RefineError(
            f"the adapter {name!r} was changed since it was written: its card names the contents {short(recorded)}, "
            f"found {fingerprint}; take a sound copy, or train it anew"
        )
    return Verification(
        layout=layout,
        fingerprint=fingerprint,
        recorded=recorded is not None,
        base=base.name if base is not None else None,
    )


def check_numbers(path: Path) -> None:
    """See that every weight of a safetensors file is a finite number.

    Raises:
        RefineError: some are not.
    """
    for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
        dtype, mask = _EXPONENTS[tensor["dtype"]]
        bits = np.frombuffer(tensor["data"], dtype=dtype)
        broken = int(np.count_nonzero((bits & mask) == mask))
        if broken:
            raise RefineError(
                f"{path}: {broken} of the {bits.size} weights of {name} are no finite numbers; take a sound copy of "
                "the adapter, or train it anew"
            )
