"""An adapter's card: what it was made from and how well it does, as JSON beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from t5refine_peft.registry.files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, read_object
from t5refine_peft.storage import fingerprint_files

ADAPTER_FINGERPRINT = "adapter_fingerprint"
_VERSIONS_OF = ("t5refine-peft", "torch", "transformers", "peft", "sentencepiece", "datasets")


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Write the card of the adapter whose weights and configuration lie in `directory`.

    What every card has is put in: the versions of the libraries, and the fingerprint of weights and configuration.
    """
    versions = {name: version(name) for name in _VERSIONS_OF}
    whole = {**card, "versions": versions, ADAPTER_FINGERPRINT: adapter_fingerprint(directory)}
    (directory / CARD_FILE).write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(directory: Path) -> dict[str, Any]:
    """The card; empty where there is none, as beside an adapter that another program made.

    Raises:
        RefineError: it is no JSON object.
    """
    path = directory / CARD_FILE
    return read_object(path) if path.exists() else {}


def adapter_fingerprint(directory: Path) -> str:
    """Of the two files that decide what the adapter answers: 16 hexadecimal digits."""
    return fingerprint_files([directory / WEIGHTS_FILE, directory / CONFIG_FILE])
