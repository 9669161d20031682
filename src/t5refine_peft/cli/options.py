"""Options that several verbs share: one name, one meaning, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Seed = Annotated[int, typer.Option(help="Of the split, the masks and the order.")]
