"""Adapters on real text: loss, top-5 and exact match on the terms of documents that training never saw.

    python benchmarks/bench_real_text.py --domain data/zh_medical --domain data/en_medical
    python benchmarks/bench_real_text.py --domain data/zh_medical --max-steps 300      # a quick look

A domain is a directory with `corpus.txt` (a document a line) and `terms.txt`. It is trained as `t5refine train
corpus.txt --terms terms.txt --domain NAME --base BASE` does, unless its adapter lies in `--work`. Base and saved
adapter answer the same frozen questions. What the adapter's card says goes to `benchmarks/results/real_text.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from t5refine_peft import AdapterRegistry, TrainingConfig, train_adapter
from t5refine_peft.storage import atomic_file

RESULTS = Path(__file__).parent / "results" / "real_text.json"
TOLD = ("base", "base_fingerprint", "metrics", "steps", "best_step", "stopped_because", "versions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", type=Path, action="append", required=True)
    parser.add_argument("--base", default="builtin:mt5-mini")
    parser.add_argument("--max-steps", type=int, help="by default all epochs")
    parser.add_argument("--work", type=Path, default=Path("runs/real_text"), help="adapters and checkpoints")
    options = parser.parse_args()
    registry = AdapterRegistry(options.work / "adapters")
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for domain in options.domain:
        if domain.name not in registry.names():
            train_adapter(
                domain / "corpus.txt",
                domain=domain.name,
                glossary=domain / "terms.txt",
                base=options.base,
                adapters_dir=registry.directory,
                runs_dir=options.work / "runs",
                config=TrainingConfig(max_steps=options.max_steps),
            )
        card = registry.card(domain.name)
        found[domain.name] = {
            **{name: card[name] for name in TOLD},
            "adapter_bytes": registry.layout(domain.name).weights_bytes,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        }
        print(domain.name, json.dumps(found[domain.name]["metrics"]), flush=True)
        with atomic_file(RESULTS) as staged:
            staged.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
