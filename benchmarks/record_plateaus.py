"""Record the validation losses of a real run that rests three times and then for good.

    python benchmarks/record_plateaus.py

The learning rate is cut to a fiftieth in four stretches; between them the loss falls as it would. In the stretches it
creeps on: `tests/training/test_stopping.py` takes that out, leaves the noise, and has plateaus to judge the callback
by. The first ends before 0.3 of the run, the next two are shorter than patience plus a window of
`DelayedEarlyStoppingCallback`, the last one is the end of learning. The result is `tests/training/loss_curve.json`.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from t5refine_peft import TrainingConfig, train_adapter
from t5refine_peft.demo.run import DEMO_CONFIG
from t5refine_peft.demo.texts import load_domain, training_documents

RESULT = Path(__file__).parents[1] / "tests" / "training" / "loss_curve.json"
EVERY = 4
"""Steps between evaluations."""
STRETCHES = [(5, False), (11, True), (5, False), (7, True), (5, False), (7, True), (6, False), (18, True)]
"""Evaluations, and whether learning rests in them."""


class RestingRate(TrainerCallback):
    """Cuts the rate of a step to a fiftieth where learning is to rest."""

    def __init__(self) -> None:
        self.rests = [rests for length, rests in STRETCHES for _ in range(length * EVERY)]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.rests[state.global_step]:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] *= 0.02


def main() -> None:
    subject = load_domain("cardiology")
    with tempfile.TemporaryDirectory() as scratch:
        options = {
            **DEMO_CONFIG.__dict__,
            "batch": 8,
            "max_steps": EVERY * sum(length for length, _ in STRETCHES),
            "eval_steps": EVERY,
            "patience": 1000,
            "evaluation_passages": 40,
        }
        train_adapter(
            training_documents(subject),
            domain="curve",
            glossary=subject.terms(),
            base="builtin:mt5-mini",
            adapters_dir=Path(scratch) / "adapters",
            runs_dir=scratch,
            config=TrainingConfig(**options),
            callbacks=[RestingRate()],
        )
        newest = max(Path(scratch).glob("curve/checkpoint-*"), key=lambda path: path.stat().st_mtime)
        history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    curve = {
        "made_by": "benchmarks/record_plateaus.py",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "steps_between_evaluations": EVERY,
        "stretches": [{"evaluations": length, "rests": rests} for length, rests in STRETCHES],
        "losses": [round(entry["eval_loss"], 5) for entry in history if "eval_loss" in entry],
    }
    RESULT.write_text(json.dumps(curve) + "\n")


if __name__ == "__main__":
    main()
