"""The domains that strategies are compared on: documents split once, frozen questions, terms held out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from datasets import Dataset, DatasetDict

from mini_text import everyday_documents
from t5refine_peft.corpus.collator import DataCollatorForTermCorruption
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.preparation import prepare_dataset, prepare_rows
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.demo.texts import DOMAINS, held_out_documents, load_domain, training_documents, validation_documents
from t5refine_peft.evaluation.evaluate import TermTest
from t5refine_peft.evaluation.questions import QuestionSet
from t5refine_peft.restoration.spacing import normalized

SPLIT_SEED = 0
"""One split of documents and one set of questions for all arms and seeds."""
UNMASKED_SHARE = 0.1
"""Share of terms that no arm's training is told of: are they learnt from their context alone?"""
_LANGUAGES = {"cardiology": "en", "contract_law": "zh"}


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A domain as every arm sees it.

    Attributes:
        splits: passages; terms held out are no terms in them.
        questions: put to every arm alike.
        term_test: the same test passages by token ids, for the loss on term tokens.
    """

    name: str
    splits: DatasetDict
    questions: QuestionSet
    term_test: TermTest


def load(
    name: str, data: Path, vocabulary: Vocabulary, collator: DataCollatorForTermCorruption, *, tokens: int, limit: int
) -> Domain:
    """Prepare a domain: a directory of `data` with corpus.txt and terms.txt, or a demo domain.

    Args:
        name: the directory's, or the demo domain's.
        data: where domains lie.
        vocabulary: the base's.
        collator: pads the term test.
        tokens: longest passage.
        limit: at most so many questions of a kind.
    """
    if name in DOMAINS:
        subject = load_domain(name)
        glossary = Glossary(subject.terms())
        texts = {
            "train": training_documents(subject),
            "validation": validation_documents(subject),
            "test": held_out_documents(subject),
        }
        splits = DatasetDict(
            {
                split: prepare_rows(part, vocabulary=vocabulary, glossary=glossary, max_tokens=tokens)
                for split, part in texts.items()
            }
        )
        language = _LANGUAGES[name]
    else:
        glossary = Glossary.load(data / name / "terms.txt")
        splits = prepare_dataset(
            documents(data / name), vocabulary=vocabulary, glossary=glossary, max_tokens=tokens, seed=SPLIT_SEED
        )
        language = name.partition("_")[0]
    unmasked = {number for number, term in enumerate(glossary.terms) if _is_held_out(term)}
    general = list(everyday_documents(limit, split="test", seed=1, language=language))
    questions = QuestionSet.build(
        splits["test"],
        vocabulary,
        training_rows=splits["train"],
        general_rows=prepare_rows(general, vocabulary=vocabulary, max_tokens=tokens) if general else (),
        limit=limit,
        seed=SPLIT_SEED,
    )
    return Domain(
        name=name,
        splits=DatasetDict({**splits, **{s: _without(splits[s], unmasked) for s in ("train", "validation")}}),
        questions=_mark_unmasked(questions),
        term_test=TermTest.build(splits["test"], collator, limit=limit),
    )


def documents(directory: Path) -> list[str]:
    """The corpus's lines, those of one document (`document_ids.txt`, a number a line) joined to one text."""
    lines = (directory / "corpus.txt").read_text(encoding="utf-8").splitlines()
    ids_file = directory / "document_ids.txt"
    ids: Iterable[str] = (
        ids_file.read_text(encoding="utf-8").split() if ids_file.exists() else map(str, range(len(lines)))
    )
    pairs = zip(ids, lines, strict=True)
    return ["\n".join(line for _, line in group) for _, group in groupby(pairs, key=lambda pair: pair[0])]


def _is_held_out(term: str) -> bool:
    """Drawn by the term itself, so that it is the same in every domain and run."""
    return int.from_bytes(hashlib.sha256(normalized(term).encode()).digest()[:4], "big") < UNMASKED_SHARE * 2**32


def _without(rows: Dataset, unmasked: set[int]) -> Dataset:
    return rows.map(
        lambda row: {"term_spans": [span for span in row["term_spans"] if span[2] not in unmasked]},
        features=rows.features,
    )


def _mark_unmasked(questions: QuestionSet) -> QuestionSet:
    return QuestionSet(
        tuple(
            replace(
                question,
                blanks=tuple(
                    replace(blank, masked_in_training=bool(blank.masked_in_training) and not _is_held_out(blank.truth))
                    if blank.kind == "term"
                    else blank
                    for blank in question.blanks
                ),
            )
            for question in questions.questions
        )
    )
