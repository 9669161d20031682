"""`t5refine train`: an adapter for a domain."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t5refine_peft.cli import options
from t5refine_peft.cli.settings import run_config
from t5refine_peft.cli.tables import print_table

if TYPE_CHECKING:
    from t5refine_peft.training.train import TrainResult


def train(
    corpus: options.Corpus = None,
    domain: options.Domain = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file of t5refine config; what is typed wins over it.")
    ] = None,
    terms: options.Terms = None,
    base: options.BaseOrNone = None,
    adapters_dir: options.AdaptersDirOrNone = None,
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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read all, show what is masked and what it takes, do two steps; write nothing."),
    ] = False,
    quantization: options.Quantization = None,
    runs_dir: Annotated[
        Path | None, typer.Option(help="The directory of the checkpoints.", show_default="runs")
    ] = None,
    rescue_dir: Annotated[
        Path | None, typer.Option(help="Where the state is saved when a checkpoint can't be written there.")
    ] = None,
    examples: options.Examples = False,
    device: options.Device = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the masks and the order.", show_default="0")] = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Train an adapter for a domain and score it beside the base on held-out documents.

    Example: t5refine train demo/cardiology/texts.txt --terms demo/cardiology/terms.txt --domain cardiology
    --base builtin:mt5-mini
    """
    options.stay_offline(offline)
    typed = {
        "--domain": domain,
        "--terms": terms,
        "--base": base,
        "--adapters-dir": adapters_dir,
        "--runs-dir": runs_dir,
        "--rescue-dir": rescue_dir,
        "--examples": examples or None,
        "--epochs": epochs,
        "--max-steps": max_steps,
        "--batch": batch,
        "--learning-rate": learning_rate,
        "--rank": rank,
        "--eval-steps": eval_steps,
        "--save-steps": save_steps,
        "--patience": patience,
        "--start-step": start_step,
        "--report-to": tuple(report_to) if report_to else None,
        "--memory": None if memory is None else options.parse_memory(memory),
        "--quantization": options.parse_quantization(quantization),
        "--device": device,
        "--seed": seed,
    }
    if dry_run and resume:
        raise typer.BadParameter("give either --dry-run or --resume")
    arguments = run_config(config, corpus, typed).train_arguments()
    from t5refine_peft.corpus.prepared import is_prepared

    if arguments["glossary"] is None and not any(map(is_prepared, arguments["corpus"])):
        print("no --terms: training on random spans alone, without term masking or term scores", file=sys.stderr)
    if dry_run:
        _rehearse(arguments, as_json)
        return
    from t5refine_peft.training.callbacks import InterruptCallback, ProgressCallback
    from t5refine_peft.training.interrupt import EXIT_CODE
    from t5refine_peft.training.train import train_adapter

    progress = ProgressCallback(label=arguments["domain"])
    interrupt = InterruptCallback(how_to_resume=_this_command_resumed())
    try:
        result = train_adapter(**arguments, resume=resume, callbacks=[progress, interrupt])
    except KeyboardInterrupt as error:
        print(f"t5refine: {error or 'interrupted'}", file=sys.stderr)
        raise typer.Exit(EXIT_CODE) from None
    _print(result, as_json)


def _rehearse(arguments: dict[str, Any], as_json: bool) -> None:
    from t5refine_peft.cli.rehearsal import rehearsal_as_json, rehearsal_lines
    from t5refine_peft.training.rehearsal import rehearse_training

    found = rehearse_training(**arguments)
    if as_json:
        print(json.dumps(rehearsal_as_json(found), ensure_ascii=False))
        return
    for line in rehearsal_lines(found):
        print(line)


def _print(result: TrainResult, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        print(json.dumps({**asdict(result), "path": str(result.path)}, ensure_ascii=False))
        return
    if result.base_scores and result.adapter_scores:
        before, after = result.base_scores, result.adapter_scores
        print_table(
            (f"{after.gaps} gaps with held-out terms", "base", "adapter"),
            (
                ("exact match", f"{before.exact_match:.1%}", f"{after.exact_match:.1%}"),
                ("token top-5", f"{before.token_top5:.1%}", f"{after.token_top5:.1%}"),
                ("token loss", f"{before.token_loss:.3f}", f"{after.token_loss:.3f}"),
            ),
        )
    print(
        f"{result.path} ({result.adapter_bytes / 1e6:.2f} MB): best at step {result.best_step} of {result.steps}, "
        f"{result.stopped_because}; {result.seconds:.0f} s, {result.tokens:,} tokens"
    )


def _this_command_resumed() -> str:
    """What the user typed, with --resume, as it can be pasted into a shell."""
    typed = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["t5refine", *typed, "--resume"])
