"""Decode the gaps of a batch of texts: greedily, by beams or by sampling, with the n best answers to each gap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedModel

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import NoNumberError, RefineError
from t5refine_peft.restoration.constraints import MAX_GAP_TOKENS, GapLogitsProcessor, GapRule
from t5refine_peft.restoration.encoding import Encoded, encode_batch
from t5refine_peft.restoration.scoring import LOGITS_BYTES, Assign, answer_log_probabilities


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are searched: `Decoding.greedy()`, `Decoding.beam(4)` or `Decoding.sampling()`."""

    strategy: Literal["greedy", "beams", "sampling"] = "greedy"
    beams: int = 1
    temperature: float = 1.0
    """Of sampling; the scores keep the adapter's own."""
    top_p: float = 1.0
    """Sample among the most probable tokens that make up this share (Holtzman et al. 2020)."""
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if self.strategy not in ("greedy", "beams", "sampling"):
            faults.append(f"strategy must be greedy, beams or sampling, found {self.strategy!r}")
        if self.beams < 1:
            faults.append(f"beams must be at least 1, found {self.beams}")
        if not 0.01 <= self.temperature <= 100:
            faults.append(f"temperature must lie between 0.01 and 100, found {self.temperature}")
        if not 0 <= self.seed < 2**63:
            faults.append(f"seed must lie between 0 and 2^63, found {self.seed}")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p must be above 0 and at most 1, found {self.top_p}")
        if faults:
            raise RefineError("; ".join(faults))

    @classmethod
    def greedy(cls) -> Decoding:
        """The most probable token each time."""
        return cls()

    @classmethod
    def beam(cls, beams: int = 4) -> Decoding:
        """The most probable whole answer that `beams` beams find."""
        return cls(strategy="beams", beams=beams)

    @classmethod
    def sampling(cls, *, temperature: float = 1.0, top_p: float = 0.95, seed: int = 0) -> Decoding:
        """Drawn by probability; the same seed and batch give the same answers."""
        return cls(strategy="sampling", temperature=temperature, top_p=top_p, seed=seed)


@dataclass(frozen=True)
class Answer:
    """The tokens for one gap and their probability, given the text and the answers before.

    The probability is that of exactly this answer: its tokens and the mark that ends it, over all that the model could
    have said, whatever the rule of the gap allowed.
    """

    ids: tuple[int, ...]
    probability: float


def decode_gaps(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    inputs: Sequence[np.ndarray],
    gap_counts: Sequence[int],
    *,
    num_candidates: int = 1,
    max_gap_tokens: int = MAX_GAP_TOKENS,
) -> list[list[list[Answer]]]:
    """Answer the gaps of a batch with one model and one rule for all; see `decode_batch`.

    Args:
        model: base or base with adapter, in the context that it computes in.
        vocabulary: the base's.
        inputs: for each text its (tokens,) ids with sentinels.
        gap_counts: for each text its number of sentinels.
        num_candidates: answers a gap; fewer come back where there are fewer.
        max_gap_tokens: longest answer.
    """
    rule = GapRule(max_tokens=max_gap_tokens)
    with torch.inference_mode():
        encoded = encode_batch(model, inputs, pad_id=vocabulary.pad_id)
    return decode_batch(model, vocabulary, encoded, [[rule] * n for n in gap_counts], num_candidates=num_candidates)


@torch.inference_mode()
def decode_batch(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    encoded: Encoded,
    rules: Sequence[Sequence[GapRule]],
    *,
    num_candidates: int = 1,
    decoding: Decoding | None = None,
    temperatures: Sequence[float] | None = None,
    assign: Assign | None = None,
) -> list[list[list[Answer]]]:
    """Answer the gaps of a batch that the encoder has read.

    Args:
        model: base or base with adapter, in the context that it computes in.
        vocabulary: the base's.
        encoded: the batch's texts.
        rules: for each text, for each of its gaps, what the answer may be.
        num_candidates: answers a gap; fewer come back where there are fewer.
        decoding: how answers are searched; None is greedy for one candidate, by beams for more.
        temperatures: for each text what the logits are divided by for the scores; None is 1.
        assign: told, before each forward, which text each row belongs to; None where it does not matter.

    Returns:
        For each text, for each gap, the answers. The first belongs to the best sequence of answers to all gaps; the
        others are by probability, each given the first answers to the gaps before.

    Raises:
        NoNumberError: the model gives scores that are no finite numbers.
    """
    assign = assign or _nobody
    if decoding is None:
        decoding = Decoding.greedy() if num_candidates == 1 else Decoding.beam(max(4, num_candidates))
    scale = torch.tensor([[value] for value in temperatures or [1.0] * len(rules)], device=encoded.mask.device)
    with _seeded(decoding, encoded.mask.device):
        best = _best_sequences(model, vocabulary, encoded, rules, decoding, assign)
    asked = [(text, gap, ids) for text, answers in enumerate(best) for gap, ids in enumerate(answers)]
    if num_candidates > 1:
        with _seeded(decoding, encoded.mask.device):
            others = _others(model, vocabulary, encoded, rules, best, num_candidates, decoding, assign)
        first = set(asked)
        asked += [item for item in others if item not in first]
    scored = _log_probabilities(model, vocabulary, encoded, best, asked, scale, assign)
    answers: list[list[list[Answer]]] = [[[] for _ in text_rules] for text_rules in rules]
    for (text, gap, ids), values in zip(asked, scored, strict=True):
        if not values.isfinite().all():
            raise NoNumberError
        answers[text][gap].append(Answer(ids, float(values[0].exp())))
    for text_answers in answers:
        for gap_answers in text_answers:
            gap_answers[1:] = sorted(gap_answers[1:], key=lambda answer: -answer.probability)[: num_candidates - 1]
    return answers


@torch.inference_mode()
def decode_at_temperatures(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    inputs: Sequence[np.ndarray],
    gap_counts: Sequence[int],
    temperatures: Sequence[float],
) -> list[list[tuple[tuple[int, ...], torch.Tensor]]]:
    """Answer the gaps of a batch greedily, each answer with its log-probability by temperature, (temperatures,) fp32.

    See `decode_gaps` for the other arguments; temperature 1 is the model's own probability.
    """
    encoded = encode_batch(model, inputs, pad_id=vocabulary.pad_id)
    rules = [[GapRule()] * count for count in gap_counts]
    scale = torch.tensor([list(temperatures)] * len(rules), device=encoded.mask.device)
    best = _best_sequences(model, vocabulary, encoded, rules, Decoding.greedy(), _nobody)
    asked = [(text, gap, ids) for text, answers in enumerate(best) for gap, ids in enumerate(answers)]
    scored = _log_probabilities(model, vocabulary, encoded, best, asked, scale, _nobody)
    answers: list[list[tuple[tuple[int, ...], torch.Tensor]]] = [[] for _ in rules]
    for (text, _, ids), values in zip(asked, scored, strict=True):
        answers[text].append((ids, values))
    return answers


def _nobody(_texts: torch.Tensor) -> None:
    """Nobody needs to know which text a row belongs to."""


_Ids = tuple[int, ...]


def _best_sequences(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    encoded: Encoded,
    rules: Sequence[Sequence[GapRule]],
    decoding: Decoding,
    assign: Assign,
) -> list[list[_Ids]]:
    """For each text the answers of its best sequence."""
    start = [model.config.decoder_start_token_id, vocabulary.sentinel_ids[0]]
    found = []
    step = _texts_at_once(model, decoding.beams)
    for at in range(0, len(rules), step):
        own = rules[at : at + step]
        texts = torch.arange(at, at + len(own), device=encoded.mask.device)
        assign(texts)
        sequences = _generate(
            model, vocabulary, encoded.of(texts), torch.tensor([start] * len(own), device=texts.device),
            GapLogitsProcessor(vocabulary, own), decoding, max_new_tokens=max(map(_longest, own)), count=1,
        )  # fmt: skip
        found += [_parse(ids, vocabulary) for ids in sequences[:, 1:].tolist()]
    return found


def _texts_at_once(model: PreTrainedModel, beams: int) -> int:
    """Texts that are decoded together, so that the logits of their beams stay within `LOGITS_BYTES`."""
    vocabulary_rows: int = model.config.vocab_size
    return max(1, LOGITS_BYTES // (4 * vocabulary_rows * beams))


def _others(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    encoded: Encoded,
    rules: Sequence[Sequence[GapRule]],
    best: Sequence[Sequence[_Ids]],
    count: int,
    decoding: Decoding,
    assign: Assign,
) -> list[tuple[int, int, _Ids]]:
    """Further answers to each gap, (text, gap, ids), each decoded behind the best answers to the gaps before."""
    if decoding.strategy != "sampling":
        decoding = Decoding.beam(max(decoding.beams, count, 4))
    device = encoded.mask.device
    gaps = [(text, gap) for text, text_rules in enumerate(rules) for gap in range(len(text_rules))]
    gaps.sort(key=lambda item: item[1])  # prefixes of about one length together
    found: dict[tuple[int, int, _Ids], None] = {}
    step = _texts_at_once(model, max(decoding.beams, count))
    for at in range(0, len(gaps), step):
        part = gaps[at : at + step]
        prefixes = [_prefix(model, vocabulary, best[text], gap) for text, gap in part]
        width = max(map(len, prefixes))
        begun = torch.full((len(part), width), vocabulary.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(part), width), dtype=torch.int64)
        for row, prefix in enumerate(prefixes):  # T5's position bias depends on distances alone
            begun[row, width - len(prefix) :] = torch.tensor(prefix)
            mask[row, width - len(prefix) :] = 1
        texts = torch.tensor([text for text, _ in part], device=device)
        assign(texts)
        processor = GapLogitsProcessor(vocabulary, [rules[text] for text, _ in part], one_gap=True)
        sequences = _generate(
            model, vocabulary, encoded.of(texts), begun.to(device), processor, decoding,
            max_new_tokens=max(_longest([rules[text][gap]]) for text, gap in part), count=count,
            decoder_attention_mask=mask.to(device),
        )  # fmt: skip
        for row, ids in enumerate(sequences[:, width:].tolist()):
            end = ids.index(vocabulary.eos_id) if vocabulary.eos_id in ids else len(ids)
            text, gap = part[row // count]
            if processor.permits(ids[:end], gap, rules[text]):
                found[text, gap, tuple(ids[:end])] = None
    return list(found)


def _generate(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    encoded: Encoded,
    begun: torch.Tensor,
    processor: GapLogitsProcessor,
    decoding: Decoding,
    *,
    max_new_tokens: int,
    count: int,
    **inputs: torch.Tensor,
) -> torch.Tensor:
    """Transformers' own search behind `begun`, (rows, tokens): (rows x count, tokens and what was generated)."""
    beams = max(decoding.beams, count) if decoding.strategy == "beams" else 1
    options: dict[str, Any] = {"do_sample": decoding.strategy == "sampling"}
    if options["do_sample"]:
        options |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    elif beams > 1:
        options |= {"length_penalty": 0.0}  # the most probable, however long
    sequences: torch.Tensor = model.generate(
        encoder_outputs=encoded.output(),
        attention_mask=encoded.mask,
        decoder_input_ids=begun,
        logits_processor=LogitsProcessorList([processor]),
        num_beams=beams,
        num_return_sequences=count,
        max_new_tokens=max_new_tokens,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=vocabulary.pad_id,
        **options,
        **inputs,
    )
    return sequences


@contextmanager
def _seeded(decoding: Decoding, device: torch.device) -> Iterator[None]:
    """Draw anew from the seed within this context: once for a batch, or each part of it would be drawn alike."""
    sampling = decoding.strategy == "sampling"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=sampling):
        if sampling:
            torch.manual_seed(decoding.seed)
        yield


def _longest(rules: Sequence[GapRule]) -> int:
    """Tokens that the answers can take, with what closes each."""
    longest = 1
    for rule in rules:
        shortest = 4 * (rule.characters or 1) + 1  # characters in bytes behind a word mark
        tokens = max(rule.max_tokens + 3, shortest) + 1  # the last character in bytes; what closes the gap
        longest += max(tokens, rule.terms.depth + 1 if rule.terms is not None else 0)
    return longest


def _prefix(model: PreTrainedModel, vocabulary: Vocabulary, answers: Sequence[_Ids], gap: int) -> list[int]:
    """The decoder's input up to the sentinel of `gap`."""
    prefix = [int(model.config.decoder_start_token_id), vocabulary.sentinel_ids[0]]
    for number, ids in enumerate(answers[:gap], start=1):
        prefix += [*ids, vocabulary.sentinel_ids[number]]
    return prefix


def _log_probabilities(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    encoded: Encoded,
    best: Sequence[Sequence[_Ids]],
    asked: Sequence[tuple[int, int, _Ids]],
    temperatures: torch.Tensor,
    assign: Assign,
) -> list[torch.Tensor]:
    """For each of `asked`, (text, gap, ids), its log-probability by temperature, (temperatures,).

    Those of a text's best sequence come from one forward together.
    """
    single = [(text, gap, ids) for text, gap, ids in asked if ids != best[text][gap]]
    sequences, firsts = [], []
    for answers in best:
        prefix = _prefix(model, vocabulary, answers, len(answers) - 1)
        sequences.append([*prefix, *answers[-1], vocabulary.eos_id])
        firsts.append(2)
    for text, gap, ids in single:
        prefix = _prefix(model, vocabulary, best[text], gap)
        last = gap + 1 == len(best[text])
        sequences.append([*prefix, *ids, vocabulary.eos_id if last else vocabulary.sentinel_ids[gap + 1]])
        firsts.append(len(prefix))
    scored = answer_log_probabilities(
        model, encoded, [*range(len(best)), *(text for text, _, _ in single)], sequences, firsts,
        temperatures=temperatures, assign=assign,
    )  # fmt: skip
    found: dict[tuple[int, int, _Ids], torch.Tensor] = {}
    for text, (answers, values) in enumerate(zip(best, scored[: len(best)], strict=True)):
        for gap, part in enumerate(torch.split(values, [len(ids) + 1 for ids in answers])):
            found[text, gap, answers[gap]] = part.sum(0)
    for item, values in zip(single, scored[len(best) :], strict=True):
        found[item] = values.sum(0)
    return [found[item] for item in asked]


def _parse(ids: Sequence[int], vocabulary: Vocabulary) -> list[_Ids]:
    """Cut a generated sequence at its sentinels."""
    sentinels = set(vocabulary.sentinel_ids)
    answers: list[list[int]] = []
    for token in ids:
        if token == vocabulary.eos_id:
            break
        if token in sentinels:
            answers.append([])
        else:
            answers[-1].append(token)
    return [tuple(answer) for answer in answers]
