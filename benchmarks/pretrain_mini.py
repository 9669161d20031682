"""Train the built-in base `mt5-mini`: a small mT5 that really infills, from generated everyday text and any corpora.

    python benchmarks/pretrain_mini.py --output runs/mini --corpus law_en.txt --corpus law_zh.txt --minutes 60
    python benchmarks/pretrain_mini.py --output runs/mini ... --minutes 60     # goes on from the last checkpoint
    python benchmarks/pretrain_mini.py --output runs/mini ... --export DIR    # the official layout, with card.json

The same command runs on a CPU and on a GPU. What makes a small T5 learn to fill gaps in CPU time:

- text whose wordings recur (`benchmarks/everyday/`), mixed with real text;
- several denoisers at once (few and many masked, short and long spans), fresh at every visit;
- Muon for the matrices (Jordan et al. 2024), and rates for embedding and head that fit their initial size;
- a second loss on the encoder: its state at each sentinel predicts the span's first token through the same head, so
  that the encoder learns from the first step, before cross-attention has found the sentinels;
- weights in bf16 with fp32 masters, and a loss that writes the logits once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import nn
from transformers import MT5Config, MT5ForConditionalGeneration
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm

from mini_text import Passages, held_out_exact_match, load_passages
from mini_tokenizer import train_tokenizer
from t5refine_peft.config import CorruptionConfig
from t5refine_peft.corpus.corruption import corrupt
from t5refine_peft.corpus.tokenization import Vocabulary

SHAPE = {"d_model": 192, "d_ff": 512, "d_kv": 64, "num_heads": 3, "num_layers": 4, "num_decoder_layers": 3}
"""About as many parameters in the layers as two hours of one CPU core can feed (Hoffmann et al. 2022)."""
DENOISERS = (
    CorruptionConfig(mask_share=0.15, mean_span_tokens=2.0),
    CorruptionConfig(mask_share=0.3, mean_span_tokens=1.5),
    CorruptionConfig(mask_share=0.3, mean_span_tokens=3.0),
    CorruptionConfig(mask_share=0.5, mean_span_tokens=4.0),
)
TERM_DENOISERS = (
    CorruptionConfig(mask_share=0.2, mean_span_tokens=2.0, term_probability=0.3, all_occurrences=1.0, random_only=0.0),
    CorruptionConfig(mask_share=0.4, mean_span_tokens=2.0, term_probability=0.6, all_occurrences=1.0, random_only=0.0),
)
"""Half of the passages with known terms get one of these: a value is masked wherever it stands, so that it has to be
recalled from the values beside it and can't be copied. That is just what an adapter will have to learn."""
COPY_DENOISERS = (
    CorruptionConfig(mask_share=0.15, mean_span_tokens=2.0, term_probability=0.5, all_occurrences=0.0, random_only=0.0),
)
"""Half of the passages of real text that say something twice get this: what is masked here still stands elsewhere, so
that the base learns to look it up."""
RARE, APART = 800, 1.5
"""Pieces that the training text has less often than RARE get head rows APART times as far from each other."""
BATCH_TOKENS = 2_400
ENCODER_LOSS_WEIGHT = 0.5
WARMUP_STEPS = 100


class _HeadCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear head whose logits are held once, in the head's own dtype.

    Arguments: hidden (tokens, d), head (rows, d), labels (tokens,). Returns a scalar.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(hidden @ head.t(), dim=-1)
        chosen = probabilities.gather(1, labels[:, None]).float()
        probabilities.scatter_add_(1, labels[:, None], torch.full_like(chosen, -1.0, dtype=probabilities.dtype))
        scale = 1.0 / labels.numel()
        ctx.save_for_backward((probabilities @ head) * scale, (probabilities.t() @ hidden) * scale)
        return -chosen.clamp_min(1e-9).log().mean()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        by_hidden, by_head = ctx.saved_tensors
        return by_hidden * grad, by_head * grad, None


@dataclass(frozen=True)
class Batch:
    """Tensors of one step, (rows, length) each; places of the sentinels, and the first token that each stands for."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    sentinels: torch.Tensor
    first_tokens: torch.Tensor


def batches(passages: Passages, vocabulary: Vocabulary, seed: int, skip: int) -> Iterator[Batch]:
    """Yield batches of about BATCH_TOKENS input tokens for ever, from number `skip` on, for resuming."""
    number = skip
    while True:
        rng = np.random.default_rng([seed, number])
        number += 1
        examples = []
        length = passages.lengths[rng.integers(len(passages.lengths))]
        rows = max(1, BATCH_TOKENS // max(int(length), 16))
        for passage in passages.near(int(length), rows, rng):
            spans, choice = (), DENOISERS
            if rng.random() < 0.5:
                if passage.term_spans:
                    spans, choice = passage.term_spans, TERM_DENOISERS
                elif passage.repeats:
                    spans, choice = passage.repeats, COPY_DENOISERS
            examples.append(
                corrupt(
                    passage.ids,
                    word_starts=passage.word_starts,
                    term_spans=spans,
                    vocabulary=vocabulary,
                    config=choice[rng.integers(len(choice))],
                    rng=rng,
                )
            )
        examples = [example for example in examples if example.spans]
        if examples:
            yield _collate(examples, vocabulary)


def _collate(examples: list[Any], vocabulary: Vocabulary) -> Batch:
    inputs = _pad([example.input_ids for example in examples], vocabulary.pad_id)
    labels = _pad([example.labels for example in examples], -100)
    sentinel_low = min(vocabulary.sentinel_ids)
    at = (inputs >= sentinel_low).nonzero(as_tuple=True)
    after = torch.roll(labels >= sentinel_low, 1, dims=1)
    after[:, 0] = False
    return Batch(inputs, labels, torch.stack(at), labels[after])


def _pad(arrays: list[np.ndarray], value: int) -> torch.Tensor:
    width = max(len(array) for array in arrays)
    padded = np.full((len(arrays), width), value, dtype=np.int64)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)


def new_model(vocabulary: Vocabulary, rows: int) -> MT5ForConditionalGeneration:
    """A fresh mT5 with an untied head that starts at zero: the first loss is the logarithm of the vocabulary."""
    config = MT5Config(
        vocab_size=rows,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=vocabulary.pad_id,
        eos_token_id=vocabulary.eos_id,
        decoder_start_token_id=vocabulary.pad_id,
        **SHAPE,
    )
    model = MT5ForConditionalGeneration._from_config(config, attn_implementation="eager")  # faster here than SDPA
    config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(torch.zeros(rows, SHAPE["d_model"]))
    for module in list(model.modules()):  # the same functions with the same weights, each in one kernel
        if hasattr(module, "act"):
            module.act = nn.GELU(approximate="tanh")
        for name, child in module.named_children():
            if isinstance(child, MT5LayerNorm):
                setattr(module, name, nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon))
    return model


@torch.no_grad()
def start_from(model: MT5ForConditionalGeneration, vocabulary: Vocabulary, tokenizer: Path, directory: Path) -> None:
    """Take over the layers of an earlier base of the same shape, and its vocabulary as far as it is ours.

    A piece that both have keeps its rows; a new one gets the mean of the rows of the pieces that it was before, and on
    top a draw from the distribution of all rows, so that new ones can be told apart (Hewitt 2021).
    """
    earlier, pieces = load_file(directory / "model.safetensors"), Vocabulary.load(directory)
    processors = [SentencePieceProcessor(str(path / "spiece.model")) for path in (tokenizer, directory)]
    rows = []
    for token in range(len(processors[0])):
        same = processors[1].piece_to_id(processors[0].id_to_piece(token))
        before = pieces.encode_continuation(vocabulary.decode([token])).ids
        kept = same != pieces.unk_id or token == vocabulary.unk_id
        rows.append(([same], 0.0) if kept else (before.astype("int64"), 0.7))
    for name, weight in model.named_parameters():
        old = earlier[name].float()
        if name in ("shared.weight", "lm_head.weight"):
            spread = torch.distributions.MultivariateNormal(torch.zeros(weight.shape[1]), old[: len(rows)].T.cov())
            weight[: len(rows)] = torch.stack([old[row].mean(0) + new * spread.sample() for row, new in rows])
        else:
            weight.copy_(old)


@torch.no_grad()
def tell_apart(model: MT5ForConditionalGeneration, passages: Passages, pieces: int) -> None:
    """Draw the head's rows of rare pieces apart.

    A piece's row gets the same push wherever it is not the label, so that the rows of rare pieces end up close to each
    other (mean cosine 0.9; Gao et al. 2019 describe it), and the base can't choose among the words of a domain, nor an
    adapter under a frozen head. Drawn apart, it fills more of the held-out gaps (Chinese statutes 20% instead of 12%),
    and the demo's adapter for cardiology restores 35% instead of 21%. RARE and APART are the best of some twenty
    choices on those gaps.
    """
    counts = np.bincount(np.concatenate([passage.ids for passage in passages]), minlength=pieces)[:pieces]
    rare = torch.from_numpy(np.flatnonzero(counts < RARE))
    rows = model.lm_head.weight[rare].float()
    model.lm_head.weight[rare] = (rows.mean(0) + APART * (rows - rows.mean(0))).to(model.lm_head.weight.dtype)


class Optimizer:
    """Muon for the layers' matrices, AdamW for the rest, on fp32 masters of the model's bf16 weights.

    The rates fit BATCH_TOKENS: with five times these nothing but word frequencies was learnt. Twice the batch bears two
    to three times the rates, and learns about half as much by the token.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = list(model.parameters())
        self.masters = [weight.detach().float().clone() for weight in self.weights]
        model.bfloat16()
        matrices, queries, tables, heads, small = [], [], [], [], []
        for (name, _), master in zip(model.named_parameters(), self.masters, strict=True):
            if name == "shared.weight":
                tables.append(master)
            elif name == "lm_head.weight":
                heads.append(master)
            elif "relative_attention_bias" in name or master.ndim < 2:
                small.append(master)
            else:
                (queries if ".q." in name else matrices).append(master)
        self.muon = torch.optim.Muon(
            [{"params": matrices, "lr": 0.004}, {"params": queries, "lr": 0.0012}], weight_decay=0.01, momentum=0.95
        )
        self.adam = torch.optim.AdamW(
            [{"params": tables, "lr": 0.006}, {"params": heads, "lr": 0.0012}, {"params": small, "lr": 0.003}],
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in (self.muon, self.adam)]

    def step(self, rate: float) -> None:
        """One step at `rate` times the peak rates; the model's gradients are used up."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = weight.grad.float()
            weight.grad = None
        for optimizer, peaks in zip((self.muon, self.adam), self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            optimizer.step()
        self.publish()

    def publish(self) -> None:
        """Copy the masters into the model's bf16 weights."""
        torch._foreach_copy_([weight.data for weight in self.weights], self.masters)

    def state(self) -> dict[str, Any]:
        return {"masters": self.masters, "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(saved)
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.publish()


def losses(model: MT5ForConditionalGeneration, batch: Batch, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's loss and the encoder's, each a mean over its tokens."""
    device = model.device
    inputs, labels = batch.input_ids.to(device), batch.labels.to(device)
    mask = (inputs != pad_id).long()
    encoded = model.encoder(input_ids=inputs, attention_mask=mask).last_hidden_state
    decoded = model.decoder(
        input_ids=model._shift_right(labels), encoder_hidden_states=encoded, encoder_attention_mask=mask
    ).last_hidden_state
    real = labels != -100
    head = model.lm_head.weight
    row, column = batch.sentinels.to(device)
    return (
        _HeadCrossEntropy.apply(decoded[real], head, labels[real]),
        _HeadCrossEntropy.apply(encoded[row, column], head, batch.first_tokens.to(device)),
    )


def schedule(step: int, progress: float) -> float:
    """Linear warm-up, then flat, then linear to zero over the last two fifths (trapezoid; Hägele et al. 2024)."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - progress) / 0.4))


def train(options: argparse.Namespace) -> None:
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "tokenizer" / "spiece.model").exists():
        train_tokenizer(output / "tokenizer", options.corpus, seed=options.seed)
    vocabulary = Vocabulary.load(output / "tokenizer")
    rows = math.ceil((max(vocabulary.sentinel_ids) + 1 + 12) / 16) * 16
    passages, held_out = load_passages(vocabulary, options.corpus, options.everyday_share, seed=options.seed)
    print(f"{len(passages.lengths):,} passages, {int(passages.lengths.sum()):,} tokens", flush=True)
    torch.manual_seed(options.seed)
    model = new_model(vocabulary, rows).to(options.device)
    if options.start_from:
        start_from(model, vocabulary, output / "tokenizer", options.start_from)
    optimizer = Optimizer(model)
    step, tokens, seconds_before = 0, 0, 0.0
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=options.device, weights_only=True)
        optimizer.load(saved["optimizer"])
        step, tokens, seconds_before = saved["step"], saved["tokens"], saved["seconds"]
    if options.export:
        tell_apart(model, passages, min(vocabulary.sentinel_ids))
        export(model, vocabulary, options, held_out, step=step, tokens=tokens, seconds=seconds_before)
        return
    started = time.monotonic()
    averages = np.zeros(2)
    for batch in batches(passages, vocabulary, options.seed, step):
        passed = time.monotonic() - started
        progress = max(
            step / options.steps if options.steps else 0.0,
            (seconds_before + passed) / (options.minutes * 60) if options.minutes else 0.0,
        )
        if progress >= 1.0:
            break
        decoder_loss, encoder_loss = losses(model, batch, vocabulary.pad_id)
        (decoder_loss + ENCODER_LOSS_WEIGHT * encoder_loss).backward()
        optimizer.step(schedule(step, progress))
        step, tokens = step + 1, tokens + batch.input_ids.numel() + batch.labels.numel()
        current = np.array([decoder_loss.item(), encoder_loss.item()])
        if not np.isfinite(current).all():
            raise SystemExit(f"step {step}: loss {current}; the last checkpoint is {checkpoint}")
        averages = current if step == 1 else 0.98 * averages + 0.02 * current
        if step % 50 == 0:
            rate = schedule(step, progress)
            print(f"step {step} {passed:.0f}s loss {averages.round(3)} rate {rate:.2f} tokens {tokens:,}", flush=True)
        if step % options.eval_steps == 0:
            print(json.dumps(held_out_exact_match(model, held_out, vocabulary)), flush=True)
            save(checkpoint, optimizer, step, tokens, seconds_before + time.monotonic() - started)
    save(checkpoint, optimizer, step, tokens, seconds_before + time.monotonic() - started)
    print(json.dumps(held_out_exact_match(model, held_out, vocabulary)), flush=True)


def save(path: Path, optimizer: Optimizer, step: int, tokens: int, seconds: float) -> None:
    """Write the checkpoint under a temporary name, then rename it."""
    state = {"optimizer": optimizer.state(), "step": step, "tokens": tokens, "seconds": seconds}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def export(
    model: MT5ForConditionalGeneration,
    vocabulary: Vocabulary,
    options: argparse.Namespace,
    held_out: dict[str, Any],
    *,
    step: int,
    tokens: int,
    seconds: float,
) -> None:
    """Write the model in the official layout, bf16, and its card."""
    directory: Path = options.export
    directory.mkdir(parents=True, exist_ok=True)
    model.config.tie_word_embeddings = False
    model.save_pretrained(directory)
    for file in (options.output / "tokenizer").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    card = {
        "name": "mt5-mini",
        "made_by": "benchmarks/pretrain_mini.py",
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "text": {
            "everyday": "generated from the fact tables in benchmarks/everyday (English and Chinese, our own)",
            "everyday_share": options.everyday_share,
            "corpora": [f"{path.parent.name}/{path.name}" for path in options.corpus],
        },
        "started_from": json.loads((options.start_from / "card.json").read_text()) if options.start_from else None,
        "steps": step,
        "tokens": tokens,
        "seconds": round(seconds),
        "single_word_gaps": held_out_exact_match(model, held_out, vocabulary),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine() + " CPU",
    }
    (directory / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=2, ensure_ascii=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory of the tokenizer and the checkpoint")
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a text file, a paragraph a line")
    parser.add_argument("--start-from", type=Path, help="an earlier base of the same shape, to go on from its weights")
    parser.add_argument("--everyday-share", type=float, default=0.6, help="share of generated text among passages")
    parser.add_argument("--minutes", type=float, default=0.0, help="length of the whole schedule in minutes")
    parser.add_argument("--steps", type=int, default=0, help="length of the whole schedule in steps")
    parser.add_argument("--eval-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", type=Path, help="write the model of the last checkpoint here, and train no more")
    options = parser.parse_args()
    if not options.export and not (options.minutes or options.steps):
        parser.error("give --minutes or --steps")
    random.seed(options.seed)
    train(options)


if __name__ == "__main__":
    main()
