"""Frozen questions: passages of held-out documents with gaps, and what belongs there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.pairs import SENTINEL, join_pair
from t5refine_peft.corpus.reading import read_text
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError
from t5refine_peft.restoration.spacing import normalized
from t5refine_peft.storage import atomic_file

Kind = Literal["term", "random"]
Part = Literal["domain", "general"]

_KEEP_COPIES = 0.5
"""Share of the questions about a term that stands several times in which only one of its places is masked."""
_LONGEST_RANDOM_WORDS = 3


@dataclass(frozen=True, kw_only=True)
class Blank:
    """What belongs into a gap, and what is known of it."""

    truth: str
    kind: Kind
    """Whether a term of the list belongs there, or any other words."""
    copy_left: bool
    """Whether the same characters stand elsewhere in the text, where they can be read off."""
    training_count: int | None = None
    """How often the term occurs in the training documents; None where that is not known."""
    masked_in_training: bool | None = None
    """Whether training ever masked it as a term; None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text with `<extra_id_0>`, `<extra_id_1>`, ... in it, and what belongs there."""

    text: str
    blanks: tuple[Blank, ...]
    document: str
    """The document that it is from: gaps of one document are not independent."""
    part: Part = "domain"
    """`general` where it asks for what the base could do before, to tell what was forgotten."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions that every system is asked alike."""

    questions: tuple[Question, ...]

    @cached_property
    def blanks(self) -> tuple[tuple[Question, Blank], ...]:
        """Every gap with its question, in order: the order of a system's answers."""
        return tuple((question, blank) for question in self.questions for blank in question.blanks)

    @cached_property
    def fingerprint(self) -> str:
        """Two sets with one fingerprint ask the same."""
        return hashlib.sha256("\n".join(map(_as_line, self.questions)).encode()).hexdigest()[:16]

    @classmethod
    def build(
        cls,
        rows: Sequence[Mapping[str, Any]],
        vocabulary: Vocabulary,
        *,
        training_rows: Iterable[Mapping[str, Any]] | None = None,
        general_rows: Sequence[Mapping[str, Any]] = (),
        limit: int = 500,
        seed: int = 0,
    ) -> QuestionSet:
        """Mask passages once and for all: the same rows and seed give the same questions.

        Args:
            rows: the test split of `prepare_dataset`, or rows of `prepare_rows`.
            vocabulary: the one they were prepared with. Texts are as it normalises them.
            training_rows: the training split, to know how often each term was there to be learnt.
            general_rows: passages of general text, to tell what was forgotten.
            limit: at most so many questions about terms, about random words, and on general text.
            seed: of what is masked.
        """
        counts = None if training_rows is None else count_terms(training_rows)
        terms: list[Question] = []
        others: list[Question] = []
        for number, row in enumerate(rows):
            rng = np.random.default_rng([seed, number])
            spans = draw_term(row, rng, everywhere=rng.random() >= _KEEP_COPIES) if len(terms) < limit else []
            terms += term_question(row, spans, vocabulary, counts)
            others += _random_question(row, rng, vocabulary, "domain") if len(others) < limit else []
        general: list[Question] = []
        for number, row in enumerate(general_rows):
            rng = np.random.default_rng([seed, number])
            general += _random_question(row, rng, vocabulary, "general") if len(general) < limit else []
        return cls((*terms, *others, *general))

    @classmethod
    def load(cls, path: str | Path, *, glossary: Glossary | None = None) -> QuestionSet:
        """Read questions from JSONL: `inputs` with sentinels, and `targets` that answer them, as T5's scripts write.

        A row may say more: `document` (without it each row is its own), `part`, and `gaps`, a list of objects with
        `kind`, `training_count` and `masked_in_training`. Where `kind` is missing, a gap counts as a term if the whole
        of it is a term of `glossary`, and as random words otherwise.

        Raises:
            RefineError: a broken row, with file and line.
        """
        questions = []
        for number, line in enumerate(read_text(Path(path)).split("\n"), start=1):
            if line.strip():
                try:
                    questions.append(_read_question(json.loads(line), f"line {number}", glossary))
                except (ValueError, TypeError) as error:  # a JSONDecodeError is a ValueError
                    raise RefineError(
                        f"{path}, line {number}: {error}; expected an object with 'inputs' and 'targets'"
                    ) from None
        if not questions:
            raise RefineError(f"{path} is empty: expected a question a line, with 'inputs' and 'targets'")
        return cls(tuple(questions))

    def save(self, path: str | Path) -> None:
        """Write the questions as JSONL that `load` reads."""
        with atomic_file(Path(path)) as staged:
            staged.write_text("".join(_as_line(question) + "\n" for question in self.questions), encoding="utf-8")


def count_terms(rows: Iterable[Mapping[str, Any]]) -> Counter[int]:
    """Occurrences of each term, by its number in the glossary."""
    if isinstance(rows, datasets.Dataset):
        rows = rows.select_columns(["term_spans"])  # token ids need not be read for it
    return Counter(int(span[2]) for row in rows for span in row["term_spans"])


def draw_term(row: Mapping[str, Any], rng: np.random.Generator, *, everywhere: bool) -> list[tuple[int, int, int]]:
    """Draw a term of a passage: all its places (start, end, term), or one of them.

    A passage without terms gives none, nor does one that is nothing but the term. A place that touches the one before
    is left out, since the two would be one gap.
    """
    spans = [(int(start), int(end), int(term)) for start, end, term in row["term_spans"]]
    if not spans:
        return []
    drawn = spans[int(rng.integers(len(spans)))]
    chosen = [span for span in spans if span[2] == drawn[2]] if everywhere else [drawn]
    chosen = [span for at, span in enumerate(chosen) if at == 0 or span[0] > chosen[at - 1][1]]
    return chosen if sum(end - start for start, end, _ in chosen) < len(row["ids"]) else []


def term_question(
    row: Mapping[str, Any],
    spans: Sequence[tuple[int, int, int]],
    vocabulary: Vocabulary,
    counts: Mapping[int, int] | None,
) -> list[Question]:
    """The question whose gaps are the term `spans` of a passage; none where nothing is asked or its text has marks."""
    spans = spans[: len(vocabulary.sentinel_ids)]
    known = [None if counts is None else counts.get(term, 0) for _, _, term in spans]
    return _question(row, [span[:2] for span in spans], "term", known, vocabulary, "domain")


def _random_question(
    row: Mapping[str, Any], rng: np.random.Generator, vocabulary: Vocabulary, part: Part
) -> list[Question]:
    """A question about one to three words that belong to no term; none where the passage has no such place."""
    starts = np.append(np.flatnonzero(row["word_starts"]), len(row["ids"]))
    is_term = np.zeros(len(row["ids"]), dtype=bool)
    for start, end, _ in row["term_spans"]:
        is_term[start:end] = True
    words = int(rng.integers(1, _LONGEST_RANDOM_WORDS + 1))
    for first in rng.permutation(max(0, len(starts) - words)).tolist():
        span = (int(starts[first]), int(starts[first + words]))
        truth = vocabulary.decode(np.asarray(row["ids"])[slice(*span)])
        if not is_term[slice(*span)].any() and any(map(str.isalnum, truth)) and span[1] - span[0] < len(row["ids"]):
            return _question(row, [span], "random", [None], vocabulary, part)
    return []


def _question(
    row: Mapping[str, Any],
    spans: Sequence[tuple[int, int]],
    kind: Kind,
    counts: Sequence[int | None],
    vocabulary: Vocabulary,
    part: Part,
) -> list[Question]:
    ids = np.asarray(row["ids"])
    borders = [0, *(border for span in spans for border in span), len(ids)]
    pieces = [vocabulary.decode(ids[start:end]) for start, end in pairwise(borders)]
    if not spans or SENTINEL.search("".join(pieces)):
        return []
    text = pieces[0].lstrip()
    for number, (hidden, after) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
        text += (" " if hidden.startswith(" ") and text else "") + f"<extra_id_{number}>" + after
    blanks = _blanks([piece.strip() for piece in pieces[1::2]], text, [kind] * len(spans), counts)
    return [Question(text=text, blanks=blanks, document=str(row["document"]), part=part)]


def _blanks(truths: Sequence[str], text: str, kinds: Sequence[Kind], counts: Sequence[int | None]) -> tuple[Blank, ...]:
    visible = normalized(text)
    return tuple(
        Blank(
            truth=truth,
            kind=kind,
            copy_left=normalized(truth) in visible,
            training_count=count,
            masked_in_training=None if count is None else count > 0,
        )
        for truth, kind, count in zip(truths, kinds, counts, strict=True)
    )


def _read_question(row: object, where: str, glossary: Glossary | None) -> Question:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("inputs", "targets")):
        raise ValueError("found no text in 'inputs' and 'targets'")
    whole, masked = join_pair(row["inputs"], row["targets"])
    truths = [whole[start:end].strip() for start, end in masked]
    if not all(truths):
        raise ValueError(f"expected text behind each sentinel of the targets, found none for gap {truths.index('')}")
    known = row.get("gaps") or [{} for _ in truths]
    if len(known) != len(truths) or not all(isinstance(gap, dict) for gap in known):
        raise ValueError(f"expected in 'gaps' an object for each of the {len(truths)} gaps, found {len(known)}")
    visible = normalized(row["inputs"])
    blanks = tuple(
        Blank(
            truth=truth,
            kind=_one_of(gap.get("kind") or ("term" if _is_term(truth, glossary) else "random"), "term", "random"),
            copy_left=normalized(truth) in visible,
            training_count=gap.get("training_count"),
            masked_in_training=gap.get("masked_in_training"),
        )
        for truth, gap in zip(truths, known, strict=True)
    )
    part = _one_of(row.get("part", "domain"), "domain", "general")
    return Question(text=row["inputs"], blanks=blanks, document=str(row.get("document", where)), part=part)


def _one_of(value: Any, *expected: str) -> Any:
    if value not in expected:
        raise ValueError(f"expected {' or '.join(map(repr, expected))}, found {value!r}")
    return value


def _is_term(truth: str, glossary: Glossary | None) -> bool:
    return glossary is not None and any((m.start, m.end) == (0, len(truth)) for m in glossary.find(truth))


def _as_line(question: Question) -> str:
    row = {
        "inputs": question.text,
        "targets": "".join(f"<extra_id_{n}> {blank.truth} " for n, blank in enumerate(question.blanks)).strip(),
        "document": question.document,
        "part": question.part,
        "gaps": [
            {
                "kind": blank.kind,
                "training_count": blank.training_count,
                "masked_in_training": blank.masked_in_training,
            }
            for blank in question.blanks
        ],
    }
    return json.dumps(row, ensure_ascii=False)
