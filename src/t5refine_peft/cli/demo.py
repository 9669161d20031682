"""`t5refine demo`: the main job on the built-in base, in two domains."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from t5refine_peft.cli import options


def demo(
    export: Annotated[
        Path | None, typer.Option(help="Write the texts and term lists of both domains to this folder; train nothing.")
    ] = None,
    as_json: options.Json = False,
    seed: options.Seed = 0,
) -> None:
    """Train an adapter for cardiology and one for Chinese contract law, and see what each restores.

    Example: t5refine demo
    """
    if export is not None:
        from t5refine_peft.demo.texts import DOMAINS, export_texts

        export_texts(export)
        for name in DOMAINS:
            print(export / name)
        return
    from t5refine_peft.demo.run import run_demo

    result = run_demo(seed=seed, progress=True)
    if as_json:
        print(
            json.dumps(
                {"seconds": round(result.seconds, 1), "domains": {n: asdict(d) for n, d in result.domains.items()}}
            )
        )
        return
    print(f"{'held-out terms restored':24}{'base':>8}{'adapter':>9}{'other adapter':>15}{'size':>10}{'seconds':>9}")
    for name, domain in result.domains.items():
        print(
            f"{name:24}{domain.base_term_exact_match:8.1%}{domain.adapter_term_exact_match:9.1%}"
            f"{domain.other_adapter_term_exact_match:15.1%}{domain.adapter_bytes / 1e6:7.2f} MB{domain.seconds:9.0f}"
        )
    for example in result.examples:
        print(f"\n{example.text}")
        for who, filled in example.fillings.items():
            print(f"  {who:14} {' | '.join(filled)}")
        print(f"  {'truth':14} {' | '.join(example.truth)}")
    print(f"\n{result.seconds:.0f} seconds in all", file=sys.stderr)
