"""`t5refine adapters`: what lies on disk, whether it is sound, and what can be made of it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t5refine_peft.cli import options
from t5refine_peft.cli.help import add_verb
from t5refine_peft.cli.tables import print_table
from t5refine_peft.errors import RefineError

if TYPE_CHECKING:
    from t5refine_peft.registry.summary import AdapterSummary

Name = Annotated[str, typer.Argument(help="An adapter's name.", show_default=False)]


def list_adapters(adapters_dir: options.AdaptersDir = Path("adapters"), as_json: options.Json = False) -> None:
    """Tell what lies in the directory: base, rank, size, and the share of held-out terms restored.

    Example: t5refine adapters list
    """
    from t5refine_peft.registry import AdapterRegistry

    found = AdapterRegistry(adapters_dir).summaries()
    if as_json:
        _print_json([asdict(summary) for summary in found])
        return
    if not found:
        print(f"{adapters_dir} holds no adapter", file=sys.stderr)
        return
    print_table(("name", "rank", "size", "terms", "base"), map(_row, found))


def show(name: Name, adapters_dir: options.AdaptersDir = Path("adapters"), as_json: options.Json = False) -> None:
    """Tell what an adapter is and what its card says of it.

    Example: t5refine adapters show cardiology
    """
    from t5refine_peft.registry import AdapterRegistry

    registry = AdapterRegistry(adapters_dir)
    layout, card = registry.layout(name), registry.card(name)
    if as_json:
        facts = {"rank": layout.rank, "parameters": layout.parameters, "weights_bytes": layout.weights_bytes}
        _print_json({"name": name, "path": str(registry.find(name)), **facts, "card": card})
        return
    print(f"{name}: rank {layout.rank} on {len(layout.layers)} layers, {layout.parameters:,} weights")
    print(f"{registry.find(name)}, {layout.weights_bytes / 1e6:.2f} MB")
    for key, value in card.items():
        print(f"{_printable(key):24}{_printable(value if isinstance(value, str) else json.dumps(value))}")


def verify(
    name: Name,
    base: Annotated[str | None, typer.Option(help="The base that it must fit, checked too.")] = None,
    adapters_dir: options.AdaptersDir = Path("adapters"),
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Read an adapter through: its tensors, its fingerprint, and with --base that it fits base and tokenizer.

    Example: t5refine adapters verify cardiology --base builtin:mt5-mini
    """
    options.stay_offline(offline)
    from t5refine_peft.registry import AdapterRegistry

    registry = AdapterRegistry(adapters_dir)
    identity = None
    if base is not None:
        registry.layout(name)  # a broken adapter is told before a base is hashed
        from t5refine_peft.modeling.identity import read_identity

        identity = read_identity(base)
    found = registry.verify(name, identity)
    if as_json:
        facts = {"fingerprint": found.fingerprint, "recorded": found.recorded, "base": found.base}
        _print_json({"name": name, "sound": True, **facts})
        return
    contents = "as its card says" if found.recorded else "no card that says what they should be"
    print(f"{name} is sound: {len(found.layout.layers)} layers of rank {found.layout.rank}, all weights finite")
    print(f"contents   {found.fingerprint} ({contents})")
    fits = f"fits {found.base}: weights, tokenizer and shapes" if found.base else "not checked: give --base"
    print(f"base       {fits}")


def remove(name: Name, adapters_dir: options.AdaptersDir = Path("adapters")) -> None:
    """Remove an adapter from the disk.

    Example: t5refine adapters remove both
    """
    from t5refine_peft.registry import AdapterRegistry

    AdapterRegistry(adapters_dir).remove(name)
    print(f"removed {name} from {adapters_dir}", file=sys.stderr)


def pack(
    name: Name,
    output: Annotated[Path | None, typer.Option(help="The file to write; by default NAME.zip here.")] = None,
    adapters_dir: options.AdaptersDir = Path("adapters"),
) -> None:
    """Write an adapter as one file, to be sent or kept.

    Example: t5refine adapters pack cardiology
    """
    from t5refine_peft.registry import AdapterRegistry

    registry = AdapterRegistry(adapters_dir)
    print(registry.pack(name, output if output is not None else Path(f"{registry.find(name).name}.zip")))


def unpack(
    file: Annotated[Path, typer.Argument(help="A file that `pack` wrote.", show_default=False)],
    domain: Annotated[str | None, typer.Option(help="A name for it, instead of the one in the file.")] = None,
    adapters_dir: options.AdaptersDir = Path("adapters"),
) -> None:
    """Take an adapter out of one file. It may come from anyone: anything but an adapter's own files is refused.

    Example: t5refine adapters unpack cardiology.zip --domain copy
    """
    from t5refine_peft.registry import AdapterRegistry

    registry = AdapterRegistry(adapters_dir)
    print(registry.find(registry.unpack(file, domain=domain)))


def combine(
    parts: Annotated[list[str], typer.Argument(help="NAME=WEIGHT, two or more.", show_default=False)],
    domain: Annotated[str, typer.Option(help="The name of the adapter to make.")],
    method: Annotated[
        str,
        typer.Option(help="One of PEFT's: cat (the exact sum), svd, linear, ties, dare_ties_svd, ..."),
    ] = "cat",
    density: Annotated[float | None, typer.Option(help="Share of weights kept, where the method prunes.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the new adapter, where the method has svd in it.")] = None,
    base: options.CardBase = None,
    adapters_dir: options.AdaptersDir = Path("adapters"),
    seed: Annotated[int, typer.Option(help="Of what DARE drops.")] = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Combine adapters of one base by weights into a new adapter.

    Example: t5refine adapters combine cardiology=0.7 copy=0.3 --domain both
    """
    options.stay_offline(offline)
    weights = _weights(parts)
    from t5refine_peft.modeling.combining import combine_adapters
    from t5refine_peft.registry import AdapterRegistry

    made = combine_adapters(
        AdapterRegistry(adapters_dir),
        weights,
        domain=domain,
        base=base,
        method=method,
        density=density,
        rank=rank,
        seed=seed,
    )
    if as_json:
        _print_json({**asdict(made), "path": str(made.path)})
        return
    print(
        f"{made.path} ({made.adapter_bytes / 1e6:.2f} MB): rank {made.rank}, "
        f"{made.relative_error:.2%} from the weighted sum"
    )


def merge(
    name: Name,
    output: Annotated[Path, typer.Option(help="The model directory to write.")],
    base: options.CardBase = None,
    export: Annotated[
        Path | None, typer.Option(help="Write it for CTranslate2 here too, in int8 (needs the extra export).")
    ] = None,
    adapters_dir: options.AdaptersDir = Path("adapters"),
    device: options.Device = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Merge an adapter into its base: a model of its own in bf16, with the drift that the rounding makes.

    Example: t5refine adapters merge cardiology --output mt5-cardiology
    """
    options.stay_offline(offline)
    from t5refine_peft.modeling.merging import merge_adapter
    from t5refine_peft.registry import AdapterRegistry

    if export is not None:
        from t5refine_peft.modeling.exporting import check_export, export_ctranslate2

        check_export(export)
    made = merge_adapter(AdapterRegistry(adapters_dir), name, output=output, base=base, device=device)
    parity = export_ctranslate2(output, export) if export is not None else None
    if as_json:
        exported = {"export": str(export), "parity": asdict(parity)} if parity is not None else {}
        _print_json({**asdict(made), "path": str(made.path), **exported})
        return
    print(f"{made.path}: probability moved against fp32, at {made.drift.places} places")
    drifts = (("merged, bf16", made.drift), ("adapter on bf16 base", made.unmerged_drift))
    print_table(
        ("", "mean", "most", "same first choice"),
        ((title, f"{drift.mean:.2%}", f"{drift.largest:.1%}", f"{drift.agreement:.1%}") for title, drift in drifts),
    )
    if parity is not None:
        print(f"{export}: CTranslate2 int8, against the merged model in fp32, on {parity.tokens} tokens")
        print(f"{'difference':24}{parity.mean_difference:7.2%} mean{parity.largest_difference:8.1%} most")


def _row(one: AdapterSummary) -> tuple[str, ...]:
    """What `list` tells of an adapter."""
    if one.weights_bytes is None:
        return one.name, "-", "-", "-", f"broken: {one.fault}"
    share = f"{one.term_exact_match:.1%}" if one.term_exact_match is not None else "-"
    return one.name, str(one.rank), f"{one.weights_bytes / 1e6:.2f} MB", share, _printable(one.base or "-")


def _weights(parts: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in parts:
        name, _, weight = part.partition("=")
        try:
            value = float(weight)
        except ValueError:
            raise RefineError(f"expected NAME=WEIGHT such as cardiology=0.5, found {part!r}") from None
        if name in weights:
            raise RefineError(f"{name!r} is given twice: expected each adapter once, with its whole weight")
        weights[name] = value
    return weights


def _printable(text: str) -> str:
    """Text out of a file from elsewhere, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _print_json(value: Any) -> None:
    told = json.dumps(value, ensure_ascii=False, default=str)
    print(told.encode("utf-8", "backslashreplace").decode())  # half characters as JSON spells them


adapters = typer.Typer(help="List, verify, pack, combine and merge adapters.", no_args_is_help=True)
add_verb(adapters, list_adapters, "list")
for verb in (show, verify, remove, pack, unpack, combine, merge):
    add_verb(adapters, verb)
