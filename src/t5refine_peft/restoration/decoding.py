"""Decoding that answers every sentinel once and in order, and the probability of each answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.modeling.loss import head_inputs, label_scores


class SentinelOrderLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Allow only answers of the form: first sentinel, its tokens, second sentinel, its tokens, ..., end mark.

    Every gap gets at least one ordinary token and at most `max_gap_tokens`. The state is read from the ids generated so
    far, so that beams may change places.
    """

    def __init__(self, vocabulary: Vocabulary, *, rows: int, gaps: torch.Tensor, max_gap_tokens: int) -> None:
        """Take the number of gaps of each text, (texts,) int64, and the number of rows of the model's head."""
        device = gaps.device
        self._sentinels = torch.tensor(vocabulary.sentinel_ids, device=device)
        self._eos_id = vocabulary.eos_id
        self._gaps = gaps
        self._max_gap_tokens = max_gap_tokens
        ordinary = torch.zeros(rows, dtype=torch.bool, device=device)
        ordinary[: len(vocabulary)] = True
        ordinary[self._sentinels] = False
        ordinary[[vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id]] = False
        self._ordinary = ordinary

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Put -inf on what is not allowed. input_ids: (rows, generated) with the start token; scores: (rows, head)."""
        gaps = self._gaps.repeat_interleave(len(input_ids) // len(self._gaps))
        is_sentinel = torch.isin(input_ids, self._sentinels)
        answered = is_sentinel.sum(1)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        length = input_ids.shape[1] - 1 - torch.where(is_sentinel, places, 0).amax(1)
        length = torch.where(answered > 0, length, 0)
        allowed = self._ordinary & ((answered > 0) & (length < self._max_gap_tokens))[:, None]
        may_close = (answered == 0) | (length > 0)
        done = answered >= gaps
        closing = torch.where(done, self._eos_id, self._sentinels[answered.clamp_max(len(self._sentinels) - 1)])
        allowed[torch.arange(len(gaps), device=gaps.device), closing] = may_close
        return scores.masked_fill(~allowed, -torch.inf)


@dataclass(frozen=True)
class Answer:
    """The tokens for one gap and their probability, given the text and the answers before."""

    ids: tuple[int, ...]
    probability: float


@torch.inference_mode()
def decode_gaps(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    inputs: list[np.ndarray],
    gap_counts: list[int],
    *,
    num_candidates: int = 1,
    max_gap_tokens: int = 24,
) -> list[list[list[Answer]]]:
    """Answer the gaps of a batch: greedily, or by beams where more than one candidate is asked for.

    Args:
        model: base or base with adapter, in the context that it computes in.
        vocabulary: the base's.
        inputs: for each text its (tokens,) ids with sentinels.
        gap_counts: for each text its number of sentinels.
        num_candidates: answers a gap; fewer come back where the beams agree.
        max_gap_tokens: longest answer.

    Returns:
        For each text, for each gap, the answers, most probable first.
    """
    width = max(map(len, inputs))
    input_ids = torch.full((len(inputs), width), vocabulary.pad_id, dtype=torch.int64)
    for row, ids in zip(input_ids, inputs, strict=True):
        row[: len(ids)] = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    input_ids = input_ids.to(model.device)
    attention_mask = (input_ids != vocabulary.pad_id).long()
    gaps = torch.tensor(gap_counts, device=model.device)
    beams = 1 if num_candidates == 1 else max(4, num_candidates)
    rows = model.get_output_embeddings().out_features
    processor = SentinelOrderLogitsProcessor(vocabulary, rows=rows, gaps=gaps, max_gap_tokens=max_gap_tokens)
    sequences = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        logits_processor=LogitsProcessorList([processor]),
        do_sample=False,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=max(gap_counts) * (max_gap_tokens + 1) + 1,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=vocabulary.pad_id,
    )
    labels = sequences[:, 1:]
    log_probabilities = _log_probabilities(model, input_ids, attention_mask, sequences, beams)
    answers = []
    for text, count in enumerate(gap_counts):
        own = slice(text * beams, (text + 1) * beams)
        parsed = [
            _parse(*pair, vocabulary)
            for pair in zip(labels[own].tolist(), log_probabilities[own].tolist(), strict=True)
        ]
        answers.append([_best([row[gap] for row in parsed], num_candidates) for gap in range(count)])
    return answers


def _log_probabilities(
    model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor, sequences: torch.Tensor, beams: int
) -> torch.Tensor:
    """Log-probability of each generated token, (rows, tokens), from one forward over the finished sequences."""
    head = model.get_output_embeddings()
    hidden = head_inputs(
        model,
        head,
        input_ids=input_ids.repeat_interleave(beams, 0),
        attention_mask=mask.repeat_interleave(beams, 0),
        decoder_input_ids=sequences[:, :-1],
    )
    return label_scores(hidden, head, sequences[:, 1:]).log_probabilities


def _parse(ids: list[int], log_probabilities: list[float], vocabulary: Vocabulary) -> list[Answer]:
    """Cut a generated sequence at its sentinels."""
    sentinels = set(vocabulary.sentinel_ids)
    answers: list[tuple[list[int], float]] = []
    for token, log_probability in zip(ids, log_probabilities, strict=True):
        if token == vocabulary.eos_id:
            break
        if token in sentinels:
            answers.append(([], 0.0))
        else:
            tokens, total = answers[-1]
            answers[-1] = ([*tokens, token], total + log_probability)
    return [Answer(tuple(tokens), float(np.exp(total))) for tokens, total in answers]


def _best(answers: list[Answer], count: int) -> list[Answer]:
    """The most probable distinct answers; the first is that of the best sequence."""
    others = sorted(answers[1:], key=lambda answer: -answer.probability)
    distinct: dict[tuple[int, ...], Answer] = {}
    for answer in [answers[0], *others]:
        distinct.setdefault(answer.ids, answer)
    return list(distinct.values())[:count]
