"""Options that several verbs share: one name, one meaning, written once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from t5refine_peft.errors import RefineError

Base = Annotated[str, typer.Option(help="A model directory, a hub id, or builtin:mt5-mini.")]
CardBase = Annotated[
    str | None, typer.Option("--base", help="The adapter's base; by default the one that its card names.")
]
AdaptersDir = Annotated[Path, typer.Option(help="The directory of the adapters.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU where there is one.")]
Quantization = Annotated[
    str | None, typer.Option(help="How the base is stored: none, int8 or nf4; by default as it lies on disk.")
]
Examples = Annotated[
    bool, typer.Option("--examples", help="Show twenty test passages in the report; they are text of the documents.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Memory = Annotated[str, typer.Option(help="What training may take of the device's memory, such as 6GB or 5.5GiB.")]
MemoryOrNone = Annotated[
    str | None, typer.Option("--memory", help="As in t5refine plan; by default what the GPU has free.")
]
Seed = Annotated[int, typer.Option(help="Of the split, the masks and the order.")]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """The bytes of an amount such as 6GB (10^9 each) or 5.5GiB (2^30 each).

    Raises:
        RefineError: it is no such amount.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise RefineError(f"{text!r} is no amount of memory: expected a number and a unit, such as 6GB or 5.5GiB")
    return int(float(found[1]) * unit)
