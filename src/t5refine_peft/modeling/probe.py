"""Compare two forms of a model by what they believe: probabilities on texts with gaps, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from t5refine_peft.corpus.corruption import build_example
from t5refine_peft.modeling.base import Base

TEXTS = (
    "The committee met on Tuesday and agreed to publish the results of the survey before the end of the year.",
    "Water boils at a lower temperature in the mountains, because the pressure of the air is lower there.",
    "The patient was given a diuretic for oedema, and the dose was lowered when the potassium fell.",
    "If the buyer does not pay the price in time, the seller may withdraw from the contract.",
    "Der Zug nach Hamburg fährt heute von einem anderen Gleis und kommt etwas später an.",
    "La bibliothèque est ouverte tous les jours sauf le lundi, et l'entrée est gratuite.",
    "El médico le recomendó descansar unos días y beber mucha agua.",
    "当事人一方不履行合同义务的，应当承担继续履行、采取补救措施或者赔偿损失等违约责任。",
    "患者因心力衰竭入院，给予利尿剂治疗后症状明显好转。",
    "春天来了，公园里的花都开了，孩子们在草地上放风筝。",
    "Поезд прибывает на станцию в восемь часов вечера, и мы встретим его на платформе.",
    "昨日は雨が降ったので、家で本を読んで過ごしました。",
)
"""Everyday and technical sentences in several languages, written for this."""
_SPAN_TOKENS, _EVERY_TOKENS = 3, 12
_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Question:
    """A text with gaps and an answer to it.

    Attributes:
        input_ids: (source tokens,) int64, with sentinels and the end mark.
        labels: (target tokens,) int64, with sentinels.
    """

    input_ids: np.ndarray
    labels: np.ndarray


def ask(model: PreTrainedModel, base: Base, texts: Sequence[str] = TEXTS) -> list[Question]:
    """Put gaps into `texts` and take two answers to each: what stood there, and what `model` says.

    The second kind has the probabilities near 1, in which a wrong scale of the logits shows; the first has the small
    ones.
    """
    questions = []
    for text in texts:
        ids = base.vocabulary.encode(text).ids
        starts = range(_EVERY_TOKENS // 2, len(ids) - _SPAN_TOKENS, _EVERY_TOKENS)
        spans = [(start, start + _SPAN_TOKENS, False) for start in starts][: len(base.vocabulary.sentinel_ids)]
        if not spans:
            continue
        example = build_example(ids, spans, vocabulary=base.vocabulary)
        source = example.input_ids.astype(np.int64)
        with torch.inference_mode(), base.autocast():
            answer = model.generate(
                input_ids=torch.from_numpy(source)[None].to(model.device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=_ANSWER_TOKENS,
                eos_token_id=base.vocabulary.eos_id,
                pad_token_id=base.vocabulary.pad_id,
            )
        said = answer[0, 1:].cpu().numpy()
        questions += [Question(source, example.labels.astype(np.int64)), Question(source, said)]
    return questions


def log_probabilities(model: PreTrainedModel, base: Base, questions: Sequence[Question]) -> list[torch.Tensor]:
    """What `model` believes at each place of each answer, given the right tokens before it.

    Returns:
        For each question (target tokens, rows of the head) float32, in nats, on the host.
    """
    found = []
    for question in questions:
        with torch.inference_mode(), base.autocast():
            logits = model(
                input_ids=torch.from_numpy(question.input_ids)[None].to(model.device),
                labels=torch.from_numpy(question.labels)[None].to(model.device),
            ).logits[0]
        found.append(F.log_softmax(logits.float(), dim=-1).cpu())
    return found


def of_answers(log_probabilities: Sequence[torch.Tensor], questions: Sequence[Question]) -> np.ndarray:
    """The log-probability of each token of the answers, (all target tokens,) float32."""
    taken = [
        rows.gather(-1, torch.from_numpy(question.labels)[:, None]).squeeze(-1)
        for rows, question in zip(log_probabilities, questions, strict=True)
    ]
    return torch.cat(taken).numpy()
