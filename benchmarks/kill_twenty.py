"""Kill a run twenty times at random moments, resume it, and compare the adapter bit by bit.

    python benchmarks/kill_twenty.py

What is claimed: a checkpoint is whole or absent, and holds all that the rest of the run depends on; so a run that was
killed by SIGKILL at any moment and resumed ends with the very bytes of the run that was never killed. The moments are
drawn, none twice, over the forwards of training and evaluation and over the flushes of the files of a save, in like
numbers, and the signal comes from a thread of its own up to three milliseconds later. Ctrl+C (SIGINT) is tried in each
kind as well. The model is a small random one with the built-in base's vocabulary, since its size has no bearing on the
claim. The result goes to `benchmarks/results/kill_twenty.json`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import MT5Config, MT5ForConditionalGeneration

from t5refine_peft import AdapterConfig, TrainingConfig, train_adapter
from t5refine_peft.modeling.location import base_directory

RESULTS = Path(__file__).parent / "results" / "kill_twenty.json"
CONFIG = TrainingConfig(
    adapter=AdapterConfig(rank=4, dropout=0.1),
    max_steps=12,
    eval_steps=4,
    save_steps=3,
    batch=4,
    micro_batch=2,
    validation_share=0.3,
    device="cpu",
    precision="float32",
)
TEXTS = [f"Case {n}: the patient with heart failure takes {n} mg of furosemide a day." for n in range(40)]
KINDS = ("step", "evaluation", "save")


def make_base(directory: Path) -> None:
    """A random mT5 of one layer a side."""
    source = base_directory("builtin:mt5-mini")
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    model = MT5ForConditionalGeneration(MT5Config.from_pretrained(source, **shape))
    model.save_pretrained(directory)
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(source / name, directory)


def train(base: str, where: str, cut: tuple[int, int, float] | None, resume: bool, kind: Any, log: Any) -> None:
    """A run that tells other processes how far it is: a moment for each forward and each flush of a file.

    `cut` is a moment, counted from 1, the signal to be sent then, and the seconds that it comes later.
    """
    from t5refine_peft.training import trainer

    real_loss, real_fsync = trainer.token_loss, os.fsync

    def tell(now: str) -> None:
        kind.value = KINDS.index(now)
        log.append(now)
        if cut is not None and len(log) == cut[0]:
            threading.Timer(cut[2], os.kill, (os.getpid(), cut[1])).start()

    def token_loss(model: Any, *arguments: Any, **options: Any) -> Any:
        tell("step" if model.training else "evaluation")
        return real_loss(model, *arguments, **options)

    def fsync(descriptor: int) -> None:
        tell("save")
        real_fsync(descriptor)

    trainer.token_loss, os.fsync = token_loss, fsync
    train_adapter(
        TEXTS,
        domain="kill",
        glossary=["heart failure", "furosemide"],
        base=base,
        adapters_dir=Path(where) / "adapters",
        runs_dir=Path(where) / "runs",
        config=CONFIG,
        resume=resume,
    )


class Runs:
    """Starts runs in processes that have everything imported already."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["t5refine_peft.training.train"])

    def run(
        self, where: str, *, cut: tuple[int, int, float] | None = None, resume: bool = False
    ) -> tuple[str, list[str]]:
        """Train, and be cut as `train` says. Returns what was going on when it ended, and the moments."""
        kind = self.context.Value(ctypes.c_int, 0)
        with self.context.Manager() as manager:
            log = manager.list()
            process = self.context.Process(target=train, args=(self.base, where, cut, resume, kind, log))
            process.start()
            process.join()
            if cut is None and process.exitcode:
                raise SystemExit(f"the run ended with {process.exitcode}")
            return KINDS[kind.value], list(log)


def digest(where: str) -> str:
    weights = Path(where) / "adapters" / "kill" / "adapter_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def main() -> None:
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        make_base(Path(scratch) / "base")
        runs = Runs(f"{scratch}/base")
        whole = f"{scratch}/whole"
        _, log = runs.run(whole)
        expected = digest(whole)
        at = {kind: [n for n, told in enumerate(log, start=1) if told == kind and n > 2] for kind in KINDS}
        for moments in at.values():
            random.shuffle(moments)  # then taken in turn: none twice
        drawn = [(signal.SIGKILL, kind, at[kind].pop()) for n in range(20) for kind in [KINDS[n % 3]]]
        drawn += [(signal.SIGINT, kind, at[kind].pop()) for kind in KINDS]
        cuts = []
        for number, (how, kind, moment) in enumerate(drawn):
            where = f"{scratch}/{number}"
            died_in, _ = runs.run(where, cut=(moment, how, random.random() * 0.003))
            kept = sorted(int(path.name[11:]) for path in Path(where).glob("runs/kill/checkpoint-*"))
            runs.run(where, resume=True)
            cuts.append(
                {
                    "signal": how.name,
                    "drawn_in": kind,
                    "moment": moment,
                    "ended_in": died_in,
                    "resumed_from_step": kept[-1] if kept else 0,
                    "identical": digest(where) == expected,
                }
            )
            print(json.dumps(cuts[-1]), flush=True)
    result = {
        "moments_in_a_run": len(log),
        "cuts": cuts,
        "identical": sum(cut["identical"] for cut in cuts),
        "of": len(cuts),
        "steps": CONFIG.max_steps,
        "device": f"{platform.machine()} CPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if result["identical"] != result["of"]:
        raise SystemExit("an adapter differs")


if __name__ == "__main__":
    main()
