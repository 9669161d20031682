"""Whether an adapter's scores, and what it takes for damage, can be trusted: fitted on validation, measured on test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from t5refine_peft.corpus.collator import CorruptionDataset, DataCollatorForTermCorruption
from t5refine_peft.corpus.corruption import Example
from t5refine_peft.evaluation.evaluate import TermTest, gap_tokens
from t5refine_peft.evaluation.metrics import calibration, calibration_error, is_exact
from t5refine_peft.modeling.base import Base
from t5refine_peft.restoration.calibration import (
    TEMPERATURES,
    Calibration,
    fit_temperature,
)
from t5refine_peft.restoration.decoding import decode_at_temperatures
from t5refine_peft.restoration.detection import (
    Detection,
    find_words,
    fit_threshold,
    make_probes,
    precision_recall,
    score_probes,
)
from t5refine_peft.restoration.encoding import encode_batch
from t5refine_peft.restoration.gaps import Gap

_BATCH = 32
_DAMAGED_PASSAGES = 40
"""Passages that damage is injected into, of each split: each is read six times over."""
_DAMAGED_SHARE = 0.1


def measure_confidence(
    model: PreTrainedModel,
    base: Base,
    splits: datasets.DatasetDict,
    collator: DataCollatorForTermCorruption,
    *,
    limit: int,
) -> dict[str, Any]:
    """What the card says under `calibration` and `detection`; see `Calibration` and `Detection`.

    Args:
        model: the base with the adapter that is judged.
        base: the base it stands on.
        splits: of `prepare_dataset`; `validation` fits, `test` measures.
        collator: masks the questions; its seed also damages the texts.
        limit: at most so many passages of a split are asked about.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), base.autocast():
            questions = [_questions(splits[name], collator, limit) for name in ("validation", "test")]
            texts = [_texts(splits[name], base) for name in ("validation", "test")]
            trust = measure_calibration(model, base, *questions)
            detection = measure_detection(model, base, *texts, seed=collator.seed)
    finally:
        model.train(was_training)
    return {
        "calibration": None if trust is None else asdict(trust),
        "detection": None if detection is None else asdict(detection),
    }


def measure_calibration(
    model: PreTrainedModel, base: Base, validation: Sequence[Example], test: Sequence[Example]
) -> Calibration | None:
    """Fit the temperature on `validation` and measure it on `test`; None where one of them has no gap."""
    if not validation or not test:
        return None
    temperature = fit_temperature(*answers_by_temperature(model, base, validation, TEMPERATURES))
    logs, right = answers_by_temperature(model, base, test, (1.0, temperature))
    before, after = (calibration(scores, right) for scores in np.exp(logs).T)
    return Calibration(
        temperature=temperature,
        fitted_gaps=sum(len(example.spans) for example in validation),
        gaps=len(right),
        error_before=calibration_error(before),
        error_after=calibration_error(after),
        curve=tuple((part.score, part.accuracy, part.count) for part in after),
    )


def answers_by_temperature(
    model: PreTrainedModel, base: Base, examples: Sequence[Example], temperatures: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Answer the gaps greedily.

    Returns:
        (gaps, temperatures) log-probabilities of the answers, and (gaps,) bool, whether each is right.
    """
    decode = base.vocabulary.decode
    logs: list[torch.Tensor] = []
    right: list[bool] = []
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    for at in range(0, len(ordered), _BATCH):
        part = ordered[at : at + _BATCH]
        inputs, counts = [example.input_ids for example in part], [len(example.spans) for example in part]
        answered = decode_at_temperatures(model, base.vocabulary, inputs, counts, temperatures)
        for example, answers in zip(part, answered, strict=True):
            for truth, (ids, values) in zip(gap_tokens(example, base), answers, strict=True):
                logs.append(values)
                right.append(is_exact(decode(truth), decode(ids)))
    return torch.stack(logs).numpy(), np.array(right)


def measure_detection(
    model: PreTrainedModel, base: Base, validation: Sequence[str], test: Sequence[str], *, seed: int
) -> Detection | None:
    """Damage words of both, fit the threshold on `validation`, measure on `test`; None where no word was damaged."""
    fitted, measured = (
        judge_damaged(model, base, texts, seed=[seed, number]) for number, texts in enumerate((validation, test))
    )
    if not fitted[1].any() or not measured[1].any():
        return None
    threshold = fit_threshold(*fitted)
    precision, recall = precision_recall(*measured, threshold)
    return Detection(
        threshold=threshold,
        precision=precision,
        recall=recall,
        words=len(measured[1]),
        damaged=int(measured[1].sum()),
    )


def judge_damaged(
    model: PreTrainedModel, base: Base, texts: Sequence[str], *, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Damage a share of the words of each text and let the model judge all of them.

    Returns:
        (words,) log-probabilities as `score_probes` gives them, and (words,) bool, which were damaged.
    """
    rng = np.random.default_rng(seed)
    vocabulary = base.vocabulary
    scores: list[float] = []
    damaged: list[bool] = []
    for text in texts:
        noisy, places = damage_words(text, [word.gap for word in find_words(text, [], vocabulary)], rng)
        words = find_words(noisy, [], vocabulary)
        probes = make_probes(noisy, [], words, vocabulary)
        if not probes:
            continue
        encoded = encode_batch(model, [probe.window.input_ids for probe in probes], pad_id=vocabulary.pad_id)
        judged = score_probes(model, vocabulary, encoded, probes, [words] * len(probes), lambda _: None)
        for number, score in sorted((number, score) for found in judged for number, score in found.items()):
            gap = words[number].gap
            scores.append(score)
            damaged.append(any(gap.start < place.end and place.start < gap.end for place in places))
    return np.array(scores), np.array(damaged, dtype=bool)


def damage_words(text: str, words: Sequence[Gap], rng: np.random.Generator) -> tuple[str, list[Gap]]:
    """Put another character of the text in place of one, in a tenth of its words.

    Returns:
        The damaged text, and where in it the damaged words are.
    """
    others = [char for char in dict.fromkeys(text) if char.isalnum()]
    parts: list[str] = []
    places = []
    reached = 0
    for word in words:
        at = int(rng.integers(word.start, word.end))
        choices = [char for char in others if char != text[at] and char.isascii() == text[at].isascii()]
        if rng.random() >= _DAMAGED_SHARE or not choices or not text[at].isalnum():
            continue
        parts += [text[reached:at], choices[int(rng.integers(len(choices)))]]
        reached = at + 1
        places.append(word)  # as long as before, so that nothing moves
    return "".join([*parts, text[reached:]]), places


def _questions(rows: datasets.Dataset, collator: DataCollatorForTermCorruption, limit: int) -> Sequence[Example]:
    """Passages with a term masked; with random spans where there is no term."""
    examples = TermTest.build(rows, collator, limit=limit).examples
    if examples:
        return examples
    items = CorruptionDataset(rows, fresh=False)
    return [collator.example(items[number]) for number in range(min(limit, len(rows)))]


def _texts(rows: datasets.Dataset, base: Base) -> list[str]:
    some = rows.select(range(min(_DAMAGED_PASSAGES, len(rows))))
    return [base.vocabulary.decode(row["ids"]).strip() for row in some]
