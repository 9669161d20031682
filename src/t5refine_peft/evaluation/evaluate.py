"""`evaluate`: one frozen set of questions, base, adapters and other systems side by side.

Beside it `answer_terms`, which training uses: the same by token ids, and with what the model believes of the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from t5refine_peft.corpus.collator import DataCollatorForTermCorruption
from t5refine_peft.corpus.corruption import Example, build_example
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.pairs import SENTINEL
from t5refine_peft.errors import RefineError
from t5refine_peft.evaluation.metrics import is_exact
from t5refine_peft.evaluation.questions import Question, QuestionSet, count_terms, draw_term, term_question
from t5refine_peft.evaluation.scores import Answers, EvaluationReport, Filling
from t5refine_peft.evaluation.systems import System, ask
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.modeling.loss import head_inputs, label_scores
from t5refine_peft.restoration.decoding import decode_gaps
from t5refine_peft.restoration.restorer import BATCH_TOKENS, Restoration, Restorer

BASE_SYSTEM = "base"
"""The base's name among the systems of a report."""


def evaluate(
    data: str | Path | QuestionSet | datasets.Dataset | datasets.DatasetDict,
    *,
    base: str | Path | Base | None = None,
    adapters: Sequence[str] = (),
    systems: Mapping[str, System] | None = None,
    adapters_dir: str | Path = "adapters",
    glossary: str | Path | Glossary | None = None,
    num_candidates: int = 5,
    batch_tokens: int = BATCH_TOKENS,
    limit: int = 500,
    device: str | None = None,
    seed: int = 0,
) -> EvaluationReport:
    """Ask base, adapters and other systems the same questions, and compare what they restore.

    >>> report = evaluate("test.jsonl", base="google/mt5-base", adapters=["cardiology"])    # doctest: +SKIP
    >>> report.comparisons[0].difference.value, report.comparisons[0].p_value               # doctest: +SKIP
    (0.31, 0.0001)

    Args:
        data: JSONL with `inputs` and `targets` (see `QuestionSet.load`), a `QuestionSet`, or a prepared dataset (or the
            directory of one), whose test split is masked with `seed`.
        base: a directory, hub id, `builtin:mt5-mini`, or a loaded base: the first system.
        adapters: names of adapters for this base.
        systems: further systems by name: any callable that takes texts with `<extra_id_0>`, ... and restores them.
        adapters_dir: where the adapters lie.
        glossary: tells which gaps of a JSONL file are terms, where the file does not say.
        num_candidates: candidates a gap, for top-5; 1 decodes greedily.
        batch_tokens: source tokens in a batch, padding counted.
        limit: at most so many questions of a kind from a prepared dataset.
        device: `cpu`, `cuda`; None takes the GPU where there is one.
        seed: of the masks of a prepared dataset, and of bootstrap and permutations.

    Raises:
        RefineError: nothing to ask, or nobody; a broken row of the file; no such base or adapter, or it is of another
            base; a system that gives something other than restored texts.
    """
    others = dict(systems or {})
    if base is None and (adapters or not others):
        raise RefineError("nothing to evaluate: give a base (adapters need theirs), or systems")
    loaded = None if base is None else base if isinstance(base, Base) else load_base(base, device=device)
    questions = _questions(data, loaded, glossary, limit=limit, seed=seed)
    answers: dict[str, Answers] = {}
    if loaded is not None:
        restorer = Restorer(loaded, adapters_dir=adapters_dir)
        for name in adapters:
            restorer.load_adapter(name)  # a mistake is told before an hour of answers
        try:
            for adapter in (None, *adapters):
                name = BASE_SYSTEM if adapter is None else adapter_system(adapter)
                answers[name] = ask(questions, _restoring(restorer, adapter, num_candidates, batch_tokens), name=name)
        finally:
            for name in restorer.adapters:
                restorer.delete_adapter(name)
    clash = sorted(answers.keys() & others.keys())
    if clash:
        raise RefineError(f"two systems are named {clash[0]!r}: rename the one among systems")
    for name, system in others.items():
        answers[name] = ask(questions, system, name=name)
    return EvaluationReport.of(questions, answers, seed=seed)


def adapter_system(adapter: str) -> str:
    """The name of an adapter among the systems of a report: its own, unless that is the base's."""
    return adapter if adapter != BASE_SYSTEM else f"{adapter} (adapter)"


def _restoring(restorer: Restorer, adapter: str | None, num_candidates: int, batch_tokens: int) -> System:
    def restore(texts: Sequence[str]) -> list[Restoration]:
        ranges = [[match.span() for match in SENTINEL.finditer(text)] for text in texts]  # no other mark is a gap
        return restorer.restore(
            texts, adapter=adapter, gaps=ranges, num_candidates=num_candidates, batch_tokens=batch_tokens
        )

    return restore


def _questions(
    data: str | Path | QuestionSet | datasets.Dataset | datasets.DatasetDict,
    base: Base | None,
    glossary: str | Path | Glossary | None,
    *,
    limit: int,
    seed: int,
) -> QuestionSet:
    if isinstance(data, QuestionSet):
        found = data
    elif isinstance(data, str | Path) and not Path(data).is_dir():
        terms = Glossary.load(glossary) if isinstance(glossary, str | Path) else glossary
        found = QuestionSet.load(data, glossary=terms)
    elif base is None:
        raise RefineError("a prepared dataset holds token ids: give the base that it was prepared for")
    else:
        rows = _load_prepared(Path(data)) if isinstance(data, str | Path) else data
        splits = rows if isinstance(rows, datasets.DatasetDict) else {"test": rows}
        if "test" not in splits:
            raise RefineError(f"the prepared dataset has no split 'test', found {sorted(splits)}: prepare it anew")
        found = QuestionSet.build(
            splits["test"], base.vocabulary, training_rows=splits.get("train"), limit=limit, seed=seed
        )
    if not found.questions:
        raise RefineError("the test set holds no question: expected passages with terms or words to mask")
    return found


def _load_prepared(directory: Path) -> datasets.Dataset | datasets.DatasetDict:
    try:
        return datasets.load_from_disk(str(directory))
    except (FileNotFoundError, ValueError):
        raise RefineError(
            f"{directory} is no prepared dataset: expected a directory that `t5refine prepare` wrote, or a JSONL file"
        ) from None


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
    """Passages with terms masked once and for all, so that every model answers the same questions.

    Attributes:
        examples: the masked passages.
        questions: the same as text, in the same order, with what is known of each gap.
    """

    examples: tuple[Example, ...]
    questions: QuestionSet = field(default_factory=lambda: QuestionSet(()))

    @classmethod
    def build(
        cls,
        rows: Sequence[dict[str, Any]],
        collator: DataCollatorForTermCorruption,
        *,
        limit: int,
        training_rows: Sequence[dict[str, Any]] | None = None,
    ) -> TermTest:
        """Mask one term of each passage, wherever it stands, so that it can't be copied; at most `limit` passages.

        Passages without terms give no question, nor does a term that is the whole passage. `training_rows` tell how
        often each term was there to be learnt.
        """
        counts = None if training_rows is None else count_terms(training_rows)
        examples: list[Example] = []
        questions: list[Question] = []
        for number, row in enumerate(rows):
            if len(examples) == limit:
                break
            spans = draw_term(row, np.random.default_rng([collator.seed, number]), everywhere=True)
            asked = term_question(row, spans, collator.vocabulary, counts)
            if asked:
                chosen = [(start, end, True) for start, end, _ in spans[: len(asked[0].blanks)]]
                ids = np.asarray(row["ids"], dtype=np.int32)
                examples.append(build_example(ids, chosen, vocabulary=collator.vocabulary))
                questions += asked
        return cls(tuple(examples), QuestionSet(tuple(questions)))


@dataclass(frozen=True)
class TermAnswers:
    """A model's scores on a `TermTest`, and its answer to each gap of the test's questions."""

    scores: TermScores
    answers: Answers


def score_terms(
    model: PreTrainedModel,
    base: Base,
    test: TermTest,
    collator: DataCollatorForTermCorruption,
    *,
    batch_size: int = 32,
) -> TermScores | None:
    """Score `model`, the base or the base with an adapter; None where the test has no gaps."""
    answered = answer_terms(model, base, test, collator, batch_size=batch_size)
    return answered.scores if answered else None


def answer_terms(
    model: PreTrainedModel,
    base: Base,
    test: TermTest,
    collator: DataCollatorForTermCorruption,
    *,
    batch_size: int = 32,
) -> TermAnswers | None:
    """Let `model` answer a test, decoded greedily, and score it; None where the test has no gaps."""
    if not test.examples:
        return None
    order = sorted(range(len(test.examples)), key=lambda number: len(test.examples[number].input_ids))
    fillings: dict[int, list[tuple[Filling, ...]]] = {}
    right = gaps = tokens = top5 = 0
    loss = 0.0
    was_training = model.training
    model.eval()
    try:
        for at in range(0, len(order), batch_size):
            numbers = order[at : at + batch_size]
            part = [test.examples[number] for number in numbers]
            with torch.inference_mode(), base.autocast():
                part_loss, part_top5, part_tokens = _teacher_forced(model, collator.pad(part))
                answers = decode_gaps(
                    model,
                    base.vocabulary,
                    [example.input_ids for example in part],
                    [len(example.spans) for example in part],
                )
            loss, top5, tokens = loss + part_loss, top5 + part_top5, tokens + part_tokens
            for number, example, answered in zip(numbers, part, answers, strict=True):
                decode = base.vocabulary.decode
                fillings[number] = [(Filling(decode(best.ids).strip(), best.probability),) for best, *_ in answered]
                for truth, (best,) in zip(gap_tokens(example, base), fillings[number], strict=True):
                    gaps += 1
                    right += is_exact(decode(truth), best.text)
    finally:
        model.train(was_training)
    scores = TermScores(gaps=gaps, exact_match=right / gaps, token_loss=loss / tokens, token_top5=top5 / tokens)
    return TermAnswers(scores, [filling for number in sorted(fillings) for filling in fillings[number]])


def _teacher_forced(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[float, int, int]:
    """Summed loss, hits in the five most probable, and number of the batch's term tokens."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch["labels"].masked_fill(~batch["term_mask"], -100)
    head = model.get_output_embeddings()
    hidden = head_inputs(
        model,
        head,
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=model._shift_right(batch["labels"]),
    )
    scores = label_scores(hidden, head, labels, top=5)
    hits = (scores.predictions == labels.unsqueeze(-1)).any(-1).sum()
    return -float(scores.log_probabilities.sum()), int(hits), int(batch["term_mask"].sum())


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
