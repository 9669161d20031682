"""`t5refine demo`: the main job on the built-in base, in two domains."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from t5refine_peft.cli import options
from t5refine_peft.cli.tables import print_table


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
    from t5refine_peft.demo.run import EXAMPLE_DOCUMENTS, run_demo

    result = run_demo(seed=seed, progress=True)
    if as_json:
        print(
            json.dumps(
                {"seconds": round(result.seconds, 1), "domains": {n: asdict(d) for n, d in result.domains.items()}}
            )
        )
        return
    print_table(
        ("held-out terms restored", "base", "adapter", "other adapter", "size", "seconds"),
        (
            (
                name,
                f"{domain.base_term_exact_match:.1%}",
                f"{domain.adapter_term_exact_match:.1%}",
                f"{domain.other_adapter_term_exact_match:.1%}",
                f"{domain.adapter_bytes / 1e6:.2f} MB",
                f"{domain.seconds:.0f}",
            )
            for name, domain in result.domains.items()
        ),
    )
    print(f"\nOf {EXAMPLE_DOCUMENTS} held-out texts of each domain, the one that its adapter fills best:")
    for example in result.examples:
        print(f"\n{example.text}")
        for who, filled in example.fillings.items():
            print(f"  {who:14} {' | '.join(filled)}")
        print(f"  {'truth':14} {' | '.join(example.truth)}")
    print(f"\n{result.seconds:.0f} seconds in all", file=sys.stderr)
