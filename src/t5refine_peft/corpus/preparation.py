"""From documents to a tokenised dataset, split by document, with its terms found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import datasets

from t5refine_peft.corpus.documents import Document, Split, Unit
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.passages import read_passages
from t5refine_peft.corpus.reading import Corpus, read_documents
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError

_MIN_TOKENS = 4
"""Shorter passages, headings and list marks mostly, have no context to learn from."""

_FEATURES = datasets.Features(
    {
        "ids": datasets.List(datasets.Value("int32")),
        "word_starts": datasets.List(datasets.Value("bool")),
        "term_spans": datasets.List(datasets.List(datasets.Value("int32"))),
        "context_tokens": datasets.Value("int32"),
        "document": datasets.Value("string"),
        "length": datasets.Value("int32"),
    }
)


def prepare_dataset(
    corpus: Corpus,
    *,
    vocabulary: Vocabulary,
    glossary: Glossary | None = None,
    max_tokens: int = 256,
    context_tokens: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    field: str = "text",
    unit: Unit | None = None,
) -> datasets.DatasetDict:
    """Read, split by document, tokenise and find terms.

    Which split a document falls into depends on its text and the seed alone, so that one more document moves no
    other, and equal documents stay together.

    Args:
        corpus: see `read_documents`; as are `field` and `unit`.
        vocabulary: the base model's.
        glossary: the terms to find; None finds none.
        max_tokens: the longest input, in tokens: passage, context and end mark.
        context_tokens: see `read_passages`.
        validation_share: share of documents for choosing the best checkpoint.
        test_share: share of documents for measuring base and adapter.
        seed: of the split.

    Returns:
        The splits `train`, `validation` and `test`. A row is a passage: `ids` (tokens,), `word_starts` (tokens,),
        `term_spans` (terms, 3) with first token, token after the last, and the term's number; `context_tokens`, how
        many tokens at its front are context; `document`, where the text is from; `length` in tokens.

    Raises:
        RefineError: no text, no term of the glossary in it, or too few documents for three splits.
    """
    rows: dict[Split, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    unsplit: list[tuple[float, list[dict[str, Any]]]] = []
    seen_terms = False
    for document in read_documents(corpus, field=field, unit=unit):
        passages = list(_passages(document, vocabulary, glossary, max_tokens, context_tokens))
        seen_terms = seen_terms or any(row["term_spans"] for row in passages)
        if passages:
            unsplit.append((_draw(document.text, seed), passages))
    if glossary is not None and not seen_terms:
        raise RefineError(
            f"none of the {len(glossary.terms)} terms occurs in the corpus (the first is {glossary.terms[0]!r}); "
            "check that list and corpus are of one language and domain"
        )
    for draw, passages in unsplit:
        split: Split = (
            "test" if draw < test_share else "validation" if draw < test_share + validation_share else "train"
        )
        rows[split] += passages
    empty = [
        name for name, share in zip(rows, (1.0, validation_share, test_share), strict=True) if share and not rows[name]
    ]
    if empty:
        raise RefineError(
            f"the corpus has {len(unsplit)} documents, too few to split into train, validation and test "
            f"({', '.join(empty)} got none); give more documents (a line of a .txt file is one)"
        )
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_list(part, features=_FEATURES) for name, part in rows.items()}
    )


def prepare_rows(
    corpus: Corpus,
    *,
    vocabulary: Vocabulary,
    glossary: Glossary | None = None,
    max_tokens: int = 256,
    context_tokens: int = 0,
    field: str = "text",
    unit: Unit | None = None,
) -> datasets.Dataset:
    """Read, tokenise and find terms without splitting: a part that the caller has set apart; see `prepare_dataset`."""
    documents = read_documents(corpus, field=field, unit=unit)
    rows = [
        row for document in documents for row in _passages(document, vocabulary, glossary, max_tokens, context_tokens)
    ]
    return datasets.Dataset.from_list(rows, features=_FEATURES)


def _draw(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _passages(
    document: Document, vocabulary: Vocabulary, glossary: Glossary | None, max_tokens: int, context_tokens: int
) -> Iterator[dict[str, Any]]:
    (passages,) = read_passages(
        [document.text],
        vocabulary=vocabulary,
        glossary=glossary,
        max_tokens=max_tokens,
        context_tokens=context_tokens,
    )
    for passage in passages:
        if len(passage.ids) - passage.context_tokens >= _MIN_TOKENS:
            yield {
                "ids": passage.ids,
                "word_starts": passage.word_starts,
                "term_spans": passage.term_spans.tolist(),
                "context_tokens": passage.context_tokens,
                "document": document.source,
                "length": len(passage.ids),
            }
