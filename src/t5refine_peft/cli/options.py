"""Options that several verbs share: one name, one meaning, written once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from t5refine_peft import config
from t5refine_peft.errors import RefineError
from t5refine_peft.offline import go_offline


def _known_device(name: str | None) -> str | None:
    if name is None or config.DEVICE_NAME.fullmatch(name):
        return name
    raise typer.BadParameter(f"no device {name!r}: expected cpu, cuda or cuda:1")


Corpus = Annotated[
    list[Path] | None,
    typer.Argument(help="Text files, folders, or a directory of t5refine prepare.", show_default=False),
]
Domain = Annotated[str | None, typer.Option(help="The name of the adapter to make.")]
Terms = Annotated[Path | None, typer.Option(help="A term list, one term a line.")]
Base = Annotated[str, typer.Option(help="A model directory, a hub id, or builtin:mt5-mini.")]
BaseOrNone = Annotated[
    str | None,
    typer.Option(
        "--base", help="A model directory, a hub id, or builtin:mt5-mini.", show_default=config.RunConfig.base
    ),
]
CardBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="A model directory, a hub id, or builtin:mt5-mini; by default the one that the adapter's card names.",
    ),
]
AdaptersDir = Annotated[Path, typer.Option(help="The directory of the adapters.")]
AdaptersDirOrNone = Annotated[
    Path | None, typer.Option("--adapters-dir", help="The directory of the adapters.", show_default="adapters")
]
Device = Annotated[
    str | None, typer.Option(help="cpu or cuda; by default the GPU where there is one.", callback=_known_device)
]
Quantization = Annotated[
    str | None, typer.Option(help="How the base is stored: none, int8 or nf4; by default as it lies on disk.")
]
Examples = Annotated[
    bool, typer.Option("--examples", help="Show twenty test passages in the report; they are text of the documents.")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Open no connection: take a hub's model from the cache, or not at all.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Memory = Annotated[str, typer.Option(help="What training may take of the device's memory, such as 6GB or 5.5GiB.")]
MemoryOrNone = Annotated[
    str | None, typer.Option("--memory", help="As in t5refine plan; by default what the GPU has free.")
]
Seed = Annotated[int, typer.Option(help="Of the split, the masks and the order.")]


def base_for(adapter: str | None, adapters_dir: Path) -> str:
    """The base to take where none is given: the one that the adapter's card names, without an adapter the default.

    Raises:
        RefineError: there is no such adapter, or its card names no base.
    """
    if adapter is None:
        return config.RunConfig.base
    from t5refine_peft.registry import AdapterRegistry

    return AdapterRegistry(adapters_dir).base_of(adapter)


def stay_offline(offline: bool) -> None:
    """Obey `--offline`: before anything is imported that could open a connection."""
    if offline:
        go_offline()


def parse_memory(text: str) -> int:
    """The bytes of `--memory`, such as 6GB or 5.5GiB.

    Raises:
        RefineError: it is no such amount.
    """
    from t5refine_peft.config_file.values import parse_bytes

    with named("--memory"):
        return parse_bytes(text)


def parse_quantization(name: str | None) -> config.Quantization | None:
    """The scheme of `--quantization`; None where it is not given.

    Raises:
        RefineError: no such scheme.
    """
    with named("--quantization"):
        return None if name is None else config.Quantization.named(name)


@contextmanager
def named(option: str) -> Iterator[None]:
    """Let an error tell which option to change.

    Raises:
        RefineError: as it was, behind the option's name.
    """
    try:
        yield
    except RefineError as error:
        raise RefineError(f"{option}: {error}") from None
