"""`t5refine train`: an adapter for a domain."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from t5refine_peft.cli import options


def train(
    corpus: Annotated[list[Path], typer.Argument(help="Text files, folders, or a directory of t5refine prepare.")],
    domain: Annotated[str, typer.Option(help="The name of the adapter to make.")],
    terms: Annotated[Path | None, typer.Option(help="A term list, one term a line.")] = None,
    base: options.Base = "google/mt5-base",
    adapters_dir: options.AdaptersDir = Path("adapters"),
    epochs: Annotated[float | None, typer.Option(help="Passes over the corpus.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps, instead of epochs.")] = None,
    batch: Annotated[int | None, typer.Option(help="Passages in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak rate.")] = None,
    rank: Annotated[int | None, typer.Option(help="The adapter's rank.")] = None,
    eval_steps: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints, beside each evaluation's.")] = None,
    patience: Annotated[int | None, typer.Option(help="Evaluations without betterment before stopping.")] = None,
    start_step: Annotated[
        float | None, typer.Option(help="Share of the run (below 1) or step before which nothing stops it.")
    ] = None,
    report_to: Annotated[list[str] | None, typer.Option(help="A tracker, tensorboard say; may be repeated.")] = None,
    memory: options.MemoryOrNone = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    quantization: options.Quantization = None,
    runs_dir: Annotated[Path, typer.Option(help="The directory of the checkpoints.")] = Path("runs"),
    rescue_dir: Annotated[
        Path | None, typer.Option(help="Where the state is saved when a checkpoint can't be written there.")
    ] = None,
    examples: options.Examples = False,
    device: options.Device = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Train an adapter for a domain and score it beside the base on held-out documents.

    Example: t5refine train notes/ --terms terms.txt --domain cardiology --base google/mt5-base
    """
    from t5refine_peft.config import AdapterConfig, Quantization, TrainingConfig
    from t5refine_peft.corpus.prepared import is_prepared
    from t5refine_peft.training.callbacks import InterruptCallback, ProgressCallback
    from t5refine_peft.training.interrupt import EXIT_CODE
    from t5refine_peft.training.train import train_adapter

    chosen: dict[str, Any] = {
        "epochs": epochs,
        "max_steps": max_steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "eval_steps": eval_steps,
        "save_steps": save_steps,
        "report_to": tuple(report_to) if report_to else None,
        "patience": patience,
        "start_step": start_step,
        "quantization": Quantization.named(quantization) if quantization is not None else None,
        "memory_bytes": None if memory is None else options.parse_bytes(memory),
        "device": device,
        "seed": seed,
        "adapter": AdapterConfig(rank=rank) if rank is not None else None,
    }
    if terms is None and not any(map(is_prepared, corpus)):
        print("no --terms: training on random spans alone, without term masking or term scores", file=sys.stderr)
    progress = ProgressCallback(label=domain)
    try:
        result = train_adapter(
            corpus,
            domain=domain,
            glossary=terms,
            base=base,
            adapters_dir=adapters_dir,
            runs_dir=runs_dir,
            config=TrainingConfig(**{name: value for name, value in chosen.items() if value is not None}),
            resume=resume,
            rescue_dir=rescue_dir,
            report_examples=examples,
            callbacks=[progress, InterruptCallback(how_to_resume=_this_command_resumed())],
        )
    except KeyboardInterrupt as interrupt:
        print(f"t5refine: {interrupt or 'interrupted'}", file=sys.stderr)
        raise typer.Exit(EXIT_CODE) from None
    finally:
        progress.close()
    if as_json:
        from dataclasses import asdict

        print(json.dumps({**asdict(result), "path": str(result.path)}, ensure_ascii=False))
        return
    if result.base_scores and result.adapter_scores:
        before, after = result.base_scores, result.adapter_scores
        print(f"held-out terms         base   adapter   ({after.gaps} gaps)")
        print(f"exact match         {before.exact_match:7.1%}   {after.exact_match:7.1%}")
        print(f"token top-5         {before.token_top5:7.1%}   {after.token_top5:7.1%}")
        print(f"token loss          {before.token_loss:7.3f}   {after.token_loss:7.3f}")
    print(
        f"{result.path} ({result.adapter_bytes / 1e6:.2f} MB): best at step {result.best_step} of {result.steps}, "
        f"{result.stopped_because}; {result.seconds:.0f} s, {result.tokens:,} tokens"
    )


def _this_command_resumed() -> str:
    """What the user typed, with --resume, as it can be pasted into a shell."""
    typed = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["t5refine", *typed, "--resume"])
