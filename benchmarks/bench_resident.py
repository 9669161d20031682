"""Resident memory of one real QLoRA step on the CPU: this library's beside the stock recipe's.

Theory, for mT5-base (192 M parameters each in embedding and head, 198 M in the layers): stock QLoRA (bitsandbytes NF4,
PEFT's k-bit preparation) keeps both vocabulary matrices and every wo in fp32, 1.65 GiB, and the logits of 256 target
tokens with their gradient in 16 and 32 bits, about .9 GiB. Here the layers are NF4 (.10 GiB), the head int8 (.18), the
embedding bf16 (.36), and there are no logits. A published file is mapped into memory and counts as resident while it
is read; what can't be dropped is the anonymous part, which is reported beside it.

    python benchmarks/bench_resident.py --shape base --output benchmarks/results/resident.json

Each recipe runs in a process of its own: 1 x 512 -> 256 tokens, rank 16 on all linear layers, checkpointing, AdamW.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import torch

from official_shapes import SHAPES, write_random_base
from t5refine_peft import AdapterConfig, Quantization, frozen_head_cross_entropy, load_base
from t5refine_peft.modeling.forward import packed_forward
from t5refine_peft.modeling.lora import add_adapter

SOURCE, TARGET = 512, 256


class PeakMemory:
    """Samples this process's resident memory, all of it and its anonymous part, until it is read."""

    def __init__(self) -> None:
        self._peaks = {"VmRSS": 0, "RssAnon": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self._peaks:
                    self._peaks[name] = max(self._peaks[name], int(value.split()[0]) * 1024)

    def read(self) -> dict[str, int]:
        self._ended.set()
        self._thread.join()
        return {"resident_bytes": self._peaks["VmRSS"], "anonymous_bytes": self._peaks["RssAnon"]}


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids, labels = torch.randint(5, 12_000, (1, SOURCE)), torch.randint(5, 12_000, (1, TARGET))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def ours(directory: Path) -> dict[str, object]:
    peak = PeakMemory()
    base = load_base(directory, quantization=Quantization.nf4(), device="cpu", precision="bfloat16")
    loaded, peak = peak.read(), PeakMemory()
    model = add_adapter(base, AdapterConfig(rank=16, dropout=0.0))
    model.train()
    core = base.model
    blocks = len(core.encoder.block) + len(core.decoder.block)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    with packed_forward(core, checkpointed_blocks=blocks):
        states = model(**batch())
    loss = frozen_head_cross_entropy(states.hidden, core.get_output_embeddings(), states.labels)
    loss.backward()
    optimizer.step()
    return {"load": loaded, "step": peak.read(), "loss": float(loss.detach())}


def stock(directory: Path) -> dict[str, object]:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

    scheme = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    peak = PeakMemory()
    model = AutoModelForSeq2SeqLM.from_pretrained(
        directory, quantization_config=scheme, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    loaded, peak = peak.read(), PeakMemory()
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    targets = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
    model = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=16, target_modules=targets))
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()
    optimizer.step()
    return {"load": loaded, "step": peak.read(), "loss": float(loss.detach())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        started = time.perf_counter()
        found = {"ours": ours, "stock": stock}[options.only](options.directory)
        print(json.dumps({**found, "seconds": round(time.perf_counter() - started, 1)}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / options.shape
        write_random_base(directory, options.shape)
        row: dict[str, object] = {"shape": options.shape, "tokens": f"1 x {SOURCE} -> {TARGET}"}
        for name in ("ours", "stock"):
            command = [sys.executable, __file__, "--only", name, "--directory", str(directory)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row[name] = json.loads(done.stdout.splitlines()[-1])
    row["device"] = platform.processor() or platform.machine()
    row["versions"] = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    print(json.dumps(row, indent=2))
    if options.output:
        rows = json.loads(options.output.read_text()) if options.output.is_file() else []
        kept = [other for other in rows if other["shape"] != options.shape]
        options.output.write_text(json.dumps([*kept, row], indent=2) + "\n")


if __name__ == "__main__":
    main()
