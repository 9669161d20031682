"""Adapters on real text: loss, top-5 and exact match on the terms of documents that training never saw.

    python benchmarks/bench_real_text.py --domain data/zh_medical --domain data/en_medical --max-steps 300

A domain is a directory with `corpus.txt` (a document a line) and `terms.txt`. Base and saved adapter answer the same
frozen questions. The result goes to `benchmarks/results/real_text.json`, with versions and device.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from t5refine_peft import TrainingConfig, train_adapter

RESULTS = Path(__file__).parent / "results" / "real_text.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", type=Path, action="append", required=True)
    parser.add_argument("--base", default="builtin:mt5-mini")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--work", type=Path, default=Path("runs/real_text"), help="adapters and checkpoints")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"domains": {}}
    for domain in options.domain:
        result = train_adapter(
            domain / "corpus.txt",
            domain=domain.name,
            glossary=domain / "terms.txt",
            base=options.base,
            adapters_dir=options.work / "adapters",
            runs_dir=options.work / "runs",
            config=TrainingConfig(max_steps=options.max_steps, max_passage_tokens=128, evaluation_passages=300),
        )
        found["domains"][domain.name] = {
            "base": asdict(result.base_scores) if result.base_scores else None,
            "adapter": asdict(result.adapter_scores) if result.adapter_scores else None,
            "steps": result.steps,
            "tokens": result.tokens,
            "seconds": round(result.seconds),
            "adapter_bytes": result.adapter_bytes,
        }
        print(domain.name, json.dumps(found["domains"][domain.name]), flush=True)
    found["base"] = options.base
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    found["versions"] = {name: version(name) for name in ("torch", "transformers", "peft")}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
