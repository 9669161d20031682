"""Documents to the rows of a prepared dataset: passages of ids with their words and terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable

from t5refine_peft.corpus.chunks import in_chunks
from t5refine_peft.corpus.documents import Document
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.pairs import LONGEST_INPUT, LONGEST_TARGET, encode_pair
from t5refine_peft.corpus.passages import Passage, read_passages, term_token_spans
from t5refine_peft.corpus.tokenization import Encoding, Vocabulary

MIN_TOKENS = 4
"""Shorter passages, headings and list marks mostly, have no context to learn from."""
_CHARACTERS_AT_ONCE = 200_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """A passage as it is stored.

    Attributes:
        ids: (tokens,) the whole passage.
        word_starts: (tokens,) bool, the pieces that begin a word.
        term_spans: (terms, 3): first token, token behind the last, the term's number.
        context_tokens: so many tokens at the front are context from the passage before.
        masked: the token ranges that a written pair masks; None where masks are drawn.
        document: where the text is from.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    term_spans: np.ndarray
    context_tokens: int
    masked: tuple[tuple[int, int], ...] | None
    document: str


def row_features(vocabulary: Vocabulary) -> datasets.Features:
    """The columns of a prepared dataset; ids in the smallest integer type that holds the vocabulary."""
    return datasets.Features(
        {
            "ids": datasets.List(datasets.Value(smallest_integer(len(vocabulary)))),
            "word_starts": datasets.List(datasets.Value("bool")),
            "term_spans": datasets.List(datasets.List(datasets.Value("int32"))),
            "context_tokens": datasets.Value("int32"),
            "masked": datasets.List(datasets.List(datasets.Value("int32"))),
            "document": datasets.Value("string"),
            "length": datasets.Value("int32"),
        }
    )


def smallest_integer(count: int) -> str:
    """The smallest integer type that holds 0 to `count` - 1, among those that torch can index with after a cast.

    >>> smallest_integer(32_100), smallest_integer(250_100)
    ('uint16', 'int32')
    """
    return next(name for name in ("uint8", "uint16", "int32", "int64") if count - 1 <= np.iinfo(name).max)


class RowBuilder:
    """Makes the rows of documents; can be sent to other processes."""

    def __init__(
        self, vocabulary: Vocabulary, glossary: Glossary | None, *, max_tokens: int, context_tokens: int
    ) -> None:
        """Take what `read_passages` takes."""
        self.vocabulary = vocabulary
        self.glossary = glossary
        self.max_tokens = max_tokens
        self.context_tokens = context_tokens

    def rows(self, documents: Iterable[Document]) -> Iterator[list[Row]]:
        """For each document its passages that have context to learn from.

        A written pair is one passage, whole; one beyond `LONGEST_INPUT` or `LONGEST_TARGET` gives none.
        """
        for batch in in_chunks(documents, characters=_CHARACTERS_AT_ONCE):  # many short ones, or a long one
            plain = read_passages(
                [document.text for document in batch if document.masked is None],
                vocabulary=self.vocabulary,
                glossary=self.glossary,
                max_tokens=self.max_tokens,
                context_tokens=self.context_tokens,
            )
            cut = iter(plain)
            for document in batch:
                if document.masked is None:
                    yield [_row(passage, document) for passage in next(cut) if _is_long_enough(passage)]
                else:
                    yield self._pair(document, document.masked)

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """Rows as an Arrow table with the columns of `row_features`."""
        features = row_features(self.vocabulary)
        schema = features.arrow_schema
        terms = np.concatenate([row.term_spans for row in rows]) if rows else np.empty((0, 3), dtype=np.int32)
        triples = _lists(terms.ravel(), np.full(len(terms), 3), schema.field("term_spans").type.value_type)
        lengths = np.array([len(row.ids) for row in rows], dtype=np.int32)
        return pa.table(
            {
                "ids": _lists(_joined([row.ids for row in rows]), lengths, schema.field("ids").type),
                "word_starts": _lists(
                    _joined([row.word_starts for row in rows]).astype(bool), lengths, schema.field("word_starts").type
                ),
                "term_spans": _lists(
                    triples, np.array([len(row.term_spans) for row in rows]), schema.field("term_spans").type
                ),
                "context_tokens": np.array([row.context_tokens for row in rows], dtype=np.int32),
                "masked": pa.array([row.masked for row in rows], schema.field("masked").type),
                "document": [row.document for row in rows],
                "length": lengths,
            },
            schema=schema,
        )

    def dataset(self, rows: Sequence[Row]) -> datasets.Dataset:
        """Rows as a dataset in memory."""
        return datasets.Dataset(InMemoryTable(self.table(rows)))

    def _pair(self, document: Document, masked: tuple[tuple[int, int], ...]) -> list[Row]:
        encoding, spans = encode_pair(document.text, masked, self.vocabulary)
        hidden = sum(end - start for start, end in spans)
        added = len(spans) + 1  # sentinels and end mark
        fits = len(encoding.ids) - hidden + added <= LONGEST_INPUT and hidden + added <= LONGEST_TARGET
        if not fits or any(start == end for start, end in spans):
            return []
        row = Row(
            ids=encoding.ids,
            word_starts=self.vocabulary.words(encoding, document.text),
            term_spans=self._terms(document.text, encoding),
            context_tokens=0,
            masked=spans,
            document=document.source,
        )
        return [row]

    def _terms(self, text: str, encoding: Encoding) -> np.ndarray:
        if self.glossary is None:
            return np.empty((0, 3), dtype=np.int32)
        return term_token_spans(text, encoding, self.glossary, self.vocabulary)


def _is_long_enough(passage: Passage) -> bool:
    return len(passage.ids) - passage.context_tokens >= MIN_TOKENS


def _row(passage: Passage, document: Document) -> Row:
    return Row(
        ids=passage.ids,
        word_starts=passage.word_starts,
        term_spans=passage.term_spans,
        context_tokens=passage.context_tokens,
        masked=None,
        document=document.source,
    )


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)


def _lists(values: np.ndarray | pa.Array, lengths: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """Lists of `lengths` over the flat `values`, without a Python object for each."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = values if isinstance(values, pa.Array) else pa.array(values).cast(kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind)
