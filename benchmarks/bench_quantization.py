"""How much each way of storing the frozen weights changes the loss: where the defaults of `Quantization` come from.

Theory: NF4 with blocks of 64 changes Gaussian weights by 9.2%, int8 by row by .7%, bf16 by .2%. The head's error goes
straight into the logits; that of the layers is averaged over many of them.

    python benchmarks/bench_quantization.py --output benchmarks/results/quantization.json

On the built-in base: span corruption of the demo's held-out documents, in nats a label token. On random weights of an
official shape (`--shapes small`), where there is no true text: random tokens, and as labels the fp32 model's own most
probable tokens. Bits are those of the whole model, a weight.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from official_shapes import SHAPES, write_random_base
from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, Glossary, Quantization, load_base
from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.corpus.preparation import prepare_rows
from t5refine_peft.demo.texts import DOMAINS, held_out_documents, load_domain
from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.loss import head_inputs, label_scores

SCHEMES = {
    "bf16": Quantization.none(),
    "layers int8": Quantization.int8(head="none"),
    "layers nf4": Quantization.nf4(head="none"),
    "head int8": Quantization(head="int8"),
    "head nf4": Quantization(head="nf4"),
    "embedding int8": Quantization(embedding="int8"),
    "embedding nf4": Quantization(embedding="nf4"),
    "Quantization.int8()": Quantization.int8(),
    "Quantization.nf4()": Quantization.nf4(),
    "leanest": Quantization.nf4(head="nf4", embedding="nf4"),
}
Batch = dict[str, torch.Tensor]


def demo_batches(base: Base) -> list[Batch]:
    """The held-out documents of both demo domains, masked once."""
    batches = []
    for name in DOMAINS:
        subject = load_domain(name)
        documents = held_out_documents(subject)[:64]
        rows = prepare_rows(documents, vocabulary=base.vocabulary, glossary=Glossary(subject.terms()))
        collator = DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig())
        items = CorruptionDataset(rows, fresh=False)
        batches += [collator([items[n] for n in range(at, min(at + 16, len(rows)))]) for at in range(0, len(rows), 16)]
    return batches


def random_batches(base: Base) -> list[Batch]:
    """Random tokens, with the model's own arg-max as labels."""
    torch.manual_seed(1)
    ids, fed = torch.randint(5, 250_000, (2, 128)), torch.randint(5, 250_000, (2, 64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": fed}
    head = base.model.get_output_embeddings()
    with torch.inference_mode():
        hidden = head_inputs(base.model, head, **batch)
        labels = label_scores(hidden, head, fed).predictions.squeeze(-1)
    return [{**batch, "labels": labels}]


def mean_loss(base: Base, batches: list[Batch]) -> float:
    head = base.model.get_output_embeddings()
    total = tokens = 0.0
    for batch in batches:
        fed = batch.get("decoder_input_ids", base.model._shift_right(batch["labels"]))
        with torch.inference_mode(), base.autocast():
            hidden = head_inputs(
                base.model,
                head,
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=fed,
            )
            scores = label_scores(hidden, head, batch["labels"])
        total -= float(scores.log_probabilities.sum())
        tokens += int((batch["labels"] != -100).sum())
    return total / tokens


def stored_bits(base: Base) -> int:
    """Bits of all weights."""
    tensors = {id(tensor): tensor for tensor in [*base.model.parameters(), *base.model.buffers()]}
    return 8 * sum(tensor.nbytes for tensor in tensors.values())


def measure(directory: str, shape: str) -> list[dict[str, object]]:
    exact = load_base(directory, device="cpu", precision="float32")
    batches = demo_batches(exact) if shape == "built-in" else random_batches(exact)
    reference, weights = mean_loss(exact, batches), stored_bits(exact) // 32
    del exact
    rows: list[dict[str, object]] = []
    sixteen = 0.0
    for name, scheme in SCHEMES.items():
        base = load_base(directory, device="cpu", precision="bfloat16", quantization=scheme)
        loss = mean_loss(base, batches)
        sixteen = loss if name == "bf16" else sixteen
        rows.append(
            {
                "model": shape,
                "scheme": name,
                **asdict(scheme),
                "bits_a_weight": round(stored_bits(base) / weights, 2),
                "fp32_loss": round(reference, 4),
                "loss": round(loss, 4),
                "more_than_bf16": round(loss - sixteen, 4),
            }
        )
        print(
            f"{shape:10} {name:22} {rows[-1]['bits_a_weight']:6} bits  loss {loss:.4f}  {loss - sixteen:+.4f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=["small"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {
        "device": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
    }
    rows: list[dict[str, object]] = []
    for shape in ["built-in", *options.shapes]:
        with tempfile.TemporaryDirectory() as scratch:
            directory = "builtin:mt5-mini" if shape == "built-in" else f"{scratch}/{shape}"
            if shape != "built-in":
                write_random_base(Path(directory), shape)
            rows += measure(directory, shape)
        if options.output:
            options.output.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
