"""What the Trainer and its callbacks cost a step, over a bare PyTorch loop on the same batches.

    python benchmarks/bench_step_overhead.py

Forward, backward, clipping, AdamW and the rate's schedule are the same in both; what the Trainer adds is Python:
events, bookkeeping, the check of the gradients, the cut by the plan of memory, the progress line. So the difference is
a constant a step, to be held below 3 ms, whatever the model. Both loops take the same short batches on the built-in
base, in turns, with one thread: where there are more, those that wait for work count as CPU time. A step's CPU time is
the least over the rounds, since what else the machine does only adds to it, and the steps are compared one by one, each
with the other loop's step on the same batch: the median of the differences is the cost, and their mean what it is with
the lines of the log, one every twelve steps, shared out. The result goes to `benchmarks/results/step_overhead.json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, get_linear_schedule_with_warmup

from t5refine_peft import (
    DataCollatorForTermCorruption,
    Glossary,
    ProgressCallback,
    TrainingConfig,
    load_base,
    plan_memory,
)
from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.corpus.preparation import prepare_dataset
from t5refine_peft.modeling.lora import add_adapter
from t5refine_peft.modeling.objective import token_loss
from t5refine_peft.training.interrupt import InterruptCallback
from t5refine_peft.training.order import LengthGroupedSampler
from t5refine_peft.training.setup import build_trainer
from t5refine_peft.training.stopping import DelayedEarlyStoppingCallback

RESULTS = Path(__file__).parent / "results" / "step_overhead.json"
STEPS = 60
ROUNDS = 12
CONFIG = TrainingConfig(batch=2, max_steps=STEPS, eval_steps=STEPS, device="cpu", precision="float32")
PLAN = plan_memory("builtin:mt5-mini", 8 << 30, batch=CONFIG.batch, precision="float32", device="cpu")  # never cuts
TEXTS = [f"Case {n}: the patient with heart failure takes {n} mg of furosemide a day." for n in range(200)]


class StepTimes(TrainerCallback):
    """The CPU time from one step's end to the next one's."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.mark = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.process_time()
        self.seconds.append(now - self.mark)
        self.mark = now


def bare(base: Any, splits: Any, collator: Any) -> list[float]:
    """The loop that one would write by hand."""
    torch.manual_seed(0)
    model = add_adapter(base, CONFIG.adapter)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=CONFIG.learning_rate, weight_decay=0.0, fused=True)  # the Trainer's
    schedule = get_linear_schedule_with_warmup(optimizer, STEPS // 10, STEPS)
    dataset = CorruptionDataset(splits["train"], fresh=True)
    sampler = LengthGroupedSampler(splits["train"]["length"][:], batch=CONFIG.batch, seed=0)
    model.train()
    seconds = []
    mark = time.process_time()
    for step, batch in enumerate(DataLoader(dataset, batch_size=CONFIG.batch, sampler=sampler, collate_fn=collator)):
        if step == STEPS:
            break
        loss, count = token_loss(model, batch, base)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, CONFIG.max_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - mark)
        mark = time.process_time()
    model.unload()
    return seconds[5:]


def ours(base: Any, splits: Any, collator: Any, run: Path) -> list[float]:
    """`train_adapter`'s Trainer with all its callbacks."""
    torch.manual_seed(0)
    model = add_adapter(base, CONFIG.adapter)
    times = StepTimes()
    callbacks = [DelayedEarlyStoppingCallback(), ProgressCallback(), InterruptCallback(), times]
    build_trainer(model, base, splits, collator, CONFIG, run, callbacks=callbacks, plan=PLAN).train()
    model.unload()
    return times.seconds[5:]


def main() -> None:
    torch.set_num_threads(1)
    base = load_base("builtin:mt5-mini", device="cpu", precision="float32")
    splits = prepare_dataset(TEXTS, vocabulary=base.vocabulary, glossary=Glossary(["heart failure", "furosemide"]))
    collator = DataCollatorForTermCorruption(base.vocabulary, CONFIG.corruption)
    by_hand: list[list[float]] = []
    by_trainer: list[list[float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(ROUNDS):
            by_hand.append(bare(base, splits, collator))
            by_trainer.append(ours(base, splits, collator, Path(scratch) / str(number)))
    least_by_hand = [min(step) for step in zip(*by_hand, strict=True)]
    least_by_trainer = [min(step) for step in zip(*by_trainer, strict=True)]
    added = [ours - bare for ours, bare in zip(least_by_trainer, least_by_hand, strict=True)]
    result = {
        "bare_ms": round(1000 * statistics.median(least_by_hand), 2),
        "ours_ms": round(1000 * statistics.median(least_by_trainer), 2),
        "overhead_ms": round(1000 * statistics.median(added), 2),
        "mean_overhead_ms": round(1000 * statistics.mean(added), 2),
        "limit_ms": 3.0,
        "steps": STEPS,
        "rounds": ROUNDS,
        "batch": CONFIG.batch,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread",
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
    }
    print(json.dumps(result))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
