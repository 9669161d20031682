"""The files of an adapter by name, and small JSON files that may come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t5refine_peft.errors import RefineError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
CARD_FILE = "card.json"
REPORT_FILE = "report.html"
RUN_FILE = "training.toml"
"""How it was trained, as `--config` takes it. It names paths of this machine, so that it is not packed."""
_LONGEST_BYTES = 16 << 20


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        RefineError: the file is missing, can't be read, is larger than 16 MiB, or holds no JSON object.
    """
    found = None
    try:
        if path.stat().st_size <= _LONGEST_BYTES:
            found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefineError(f"{path} is missing; take a whole copy of the adapter, or train it anew") from None
    except OSError as error:
        raise RefineError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # no JSON, no UTF-8, a number without end; brackets without end
        pass
    if not isinstance(found, dict):
        raise RefineError(
            f"{path} is broken: expected a JSON object; take a sound copy of the adapter, or train it anew"
        )
    return found


def short(value: object) -> str:
    """A value out of a file from elsewhere, as it may stand in one line on a terminal: nothing in it is obeyed."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
