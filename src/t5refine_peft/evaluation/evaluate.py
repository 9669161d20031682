"""Score a model on the terms of held-out passages, by what it restores and by what it believes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from t5refine_peft.corpus.collator import DataCollatorForTermCorruption
from t5refine_peft.corpus.corruption import Example, build_example
from t5refine_peft.modeling.base import Base
from t5refine_peft.restoration.decoding import decode_gaps
from t5refine_peft.restoration.spacing import normalized


@dataclass(frozen=True, kw_only=True)
class TermScores:
    """Scores over term gaps.

    Attributes:
        gaps: number of gaps scored.
        exact_match: share of gaps restored right, compared after NFKC and case folding; decoded greedily.
        token_loss: mean cross-entropy of the terms' tokens, in nats, each given the right tokens before it.
        token_top5: share of the terms' tokens among the model's five most probable, likewise.
    """

    gaps: int
    exact_match: float
    token_loss: float
    token_top5: float


@dataclass(frozen=True)
class TermTest:
    """Passages with terms masked once and for all, so that every model answers the same questions."""

    examples: tuple[Example, ...]

    @classmethod
    def build(cls, rows: Sequence[dict[str, Any]], collator: DataCollatorForTermCorruption, *, limit: int) -> TermTest:
        """Mask one term of each passage, wherever it stands, so that it can't be copied; at most `limit` passages.

        Passages without terms give no question, nor does a term that is the whole passage.
        """
        examples: list[Example] = []
        for number, row in enumerate(rows):
            if len(examples) == limit:
                break
            spans = [tuple(int(value) for value in span) for span in row["term_spans"]]
            if not spans:
                continue
            rng = np.random.default_rng([collator.seed, number])
            term = spans[int(rng.integers(len(spans)))][2]
            chosen = [(start, end, True) for start, end, other in spans if other == term]
            chosen = [span for at, span in enumerate(chosen) if at == 0 or span[0] > chosen[at - 1][1]]
            chosen = chosen[: len(collator.vocabulary.sentinel_ids)]
            ids = np.asarray(row["ids"], dtype=np.int32)
            if sum(end - start for start, end, _ in chosen) < len(ids):
                examples.append(build_example(ids, chosen, vocabulary=collator.vocabulary))
        return cls(tuple(examples))


def score_terms(
    model: PreTrainedModel,
    base: Base,
    test: TermTest,
    collator: DataCollatorForTermCorruption,
    *,
    batch_size: int = 32,
) -> TermScores | None:
    """Score `model`, the base or the base with an adapter; None where the test has no gaps."""
    if not test.examples:
        return None
    examples = sorted(test.examples, key=lambda example: len(example.input_ids))
    right = gaps = tokens = top5 = 0
    loss = 0.0
    was_training = model.training
    model.eval()
    try:
        for at in range(0, len(examples), batch_size):
            part = examples[at : at + batch_size]
            with torch.inference_mode(), base.autocast():
                part_loss, part_top5, part_tokens = _teacher_forced(model, collator.pad(part))
                answers = decode_gaps(
                    model,
                    base.vocabulary,
                    [example.input_ids for example in part],
                    [len(example.spans) for example in part],
                )
            loss, top5, tokens = loss + part_loss, top5 + part_top5, tokens + part_tokens
            for example, answered in zip(part, answers, strict=True):
                for truth, candidates in zip(gap_tokens(example, base), answered, strict=True):
                    gaps += 1
                    right += same_text(truth, candidates[0].ids, base)
    finally:
        model.train(was_training)
    return TermScores(gaps=gaps, exact_match=right / gaps, token_loss=loss / tokens, token_top5=top5 / tokens)


def _teacher_forced(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[float, int, int]:
    """Summed loss, hits in the five most probable, and number of the batch's term tokens."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    mask = batch["term_mask"]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).logits[
        mask
    ]
    labels = batch["labels"][mask]
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    hits = (logits.topk(5, dim=-1).indices == labels[:, None]).any(-1).sum()
    return float(loss), int(hits), int(mask.sum())


def gap_tokens(example: Example, base: Base) -> list[list[int]]:
    """What stood in each gap of an example, as token ids."""
    sentinels = set(base.vocabulary.sentinel_ids)
    gaps: list[list[int]] = []
    for token in example.labels[:-1].tolist():
        if token in sentinels:
            gaps.append([])
        else:
            gaps[-1].append(token)
    return gaps


def same_text(truth: Sequence[int], answer: Sequence[int], base: Base) -> bool:
    """Whether an answer is right: the same text after NFKC and case folding."""
    decode = base.vocabulary.decode
    return normalized(decode(truth)) == normalized(decode(answer))
