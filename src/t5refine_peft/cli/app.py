"""The command and its verbs. Heavy imports stay inside the verbs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys

import typer

from t5refine_peft.cli.adapters import adapters
from t5refine_peft.cli.config import write_config
from t5refine_peft.cli.demo import demo
from t5refine_peft.cli.doctor import doctor
from t5refine_peft.cli.evaluate import evaluate
from t5refine_peft.cli.help import add_verb
from t5refine_peft.cli.plan import plan
from t5refine_peft.cli.prepare import prepare
from t5refine_peft.cli.restore import restore
from t5refine_peft.cli.train import train
from t5refine_peft.errors import RefineError

app = typer.Typer(
    name="t5refine",
    help="Teach mT5 or T5 the language of a domain, and restore damaged text of it. All on this machine. The examples "
    "of the verbs work as pasted, one after the other, on the files that t5refine demo --export demo writes.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for verb in (demo, prepare, plan, train, evaluate, restore):
    add_verb(app, verb)
app.add_typer(adapters, name="adapters")
add_verb(app, write_config, "config")
add_verb(app, doctor)


def main() -> None:
    """Run the command; a `RefineError` is told in one line and ends with 1."""
    _quiet()
    try:
        app()
    except RefineError as error:
        print(f"t5refine: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _quiet() -> None:
    """Keep the libraries' own progress and notices out of ours; set variables win."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
