"""Documents cut into passages of a token budget, at sentences where possible. Nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.tokenization import Encoding, Vocabulary
from t5refine_peft.errors import RefineError

_SENTENCE_MARK = re.compile(r"([。！？；…!?;.\n]+[”’」』）\"')\]]*)(?=(\s*)(\S?))")
_INITIAL = re.compile(r"\W?[A-Z]")
_SEPARATOR = "\n\n"
"""A blank line, which no term holds."""
_CLAUSE_END = re.compile(r"[，、：]|[,:](?=\s)")


@dataclass(frozen=True)
class Passage:
    """A part of a document, ready to be masked.

    Attributes:
        ids: (tokens,) int32: context from the passage before, then the passage's own tokens.
        word_starts: (tokens,) bool, the pieces that begin a word.
        term_spans: (terms, 3) int32: first token, token behind the last, and the term's number in the glossary.
        context_tokens: so many tokens at the front are context.
        start: the first character of the document that is the passage's own.
        end: the character behind its last.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    term_spans: np.ndarray
    context_tokens: int
    start: int
    end: int


def read_passages(
    texts: Sequence[str],
    *,
    vocabulary: Vocabulary,
    glossary: Glossary | None = None,
    max_tokens: int = 256,
    context_tokens: int = 0,
) -> list[list[Passage]]:
    """Encode documents, find their terms, and cut each into passages; for speed, hundreds of documents at a time.

    Put together, `text[passage.start : passage.end]` of a document's passages are its text, and their own ids are its
    ids. A document without a token (blanks alone) gives no passage.

    Args:
        texts: the documents.
        vocabulary: the base model's.
        glossary: the terms to find; None finds none.
        max_tokens: the model's input: context, passage and end mark.
        context_tokens: at most so many tokens, whole words, of the text before are put in front of each passage but
            a document's first.

    Returns:
        For each document its passages, in order.

    Raises:
        RefineError: a budget that leaves no room for a passage.
    """
    _check_budget(max_tokens - 1, context_tokens)
    whole = _SEPARATOR.join(texts)  # so that what can be done at once for all is done once
    places = list(accumulate((len(text) + len(_SEPARATOR) for text in texts), initial=0))[:-1]
    encoding, counts = vocabulary.encode_each(texts, places)
    borders = np.cumsum(counts)
    words = vocabulary.words(encoding, whole)
    words[borders[:-1][borders[:-1] < len(words)]] = True
    spans = term_token_spans(whole, encoding, glossary, vocabulary) if glossary else np.zeros((0, 3), dtype=np.int32)
    owners = np.searchsorted(borders, spans[:, 0], side="right")
    spans[:, :2] -= (borders - counts)[owners, None]
    spans_behind = np.searchsorted(owners, np.arange(len(texts)), side="right").tolist()
    documents: list[list[Passage]] = []
    first = low = 0
    for text, place, last, high in zip(texts, places, borders.tolist(), spans_behind, strict=True):
        ids, own_words, own_spans = encoding.ids[first:last], words[first:last], spans[low:high]
        if 0 < len(ids) < max_tokens:  # true of most documents that are short, where every call counts
            documents.append([Passage(ids, own_words, own_spans, context_tokens=0, start=0, end=len(text))])
        else:
            own = Encoding(ids, encoding.starts[first:last] - place, encoding.ends[first:last] - place)
            documents.append(list(_passages(text, own, own_words, own_spans, max_tokens - 1, context_tokens)))
        first, low = last, high
    return documents


def _passages(
    text: str, encoding: Encoding, words: np.ndarray, spans: np.ndarray, max_tokens: int, context_tokens: int
) -> Iterator[Passage]:
    cuts = split_passages(text, encoding, words, term_spans=spans, max_tokens=max_tokens, context_tokens=context_tokens)
    start = 0
    for cut in cuts:
        last = cut.stop == len(words)
        end = len(text) if last else int(encoding.starts[cut.stop])
        first = cut.start
        if context_tokens and first:
            before = np.flatnonzero(words[max(0, first - context_tokens) : first])
            first = max(0, first - context_tokens) + int(before[0]) if len(before) else first
        inside = spans if last and not first else spans[(spans[:, 0] >= first) & (spans[:, 1] <= cut.stop)]
        yield Passage(
            ids=encoding.ids[first : cut.stop],
            word_starts=words[first : cut.stop],
            term_spans=inside - np.array([first, first, 0], dtype=np.int32) if first else inside,
            context_tokens=cut.start - first,
            start=start,
            end=end,
        )
        start = end


def split_passages(
    text: str,
    encoding: Encoding,
    word_starts: np.ndarray,
    *,
    max_tokens: int,
    context_tokens: int = 0,
    term_spans: np.ndarray | None = None,
) -> list[slice]:
    """Cut a document into token slices of at most `max_tokens`, which follow on each other and cover it.

    A slice ends with the last sentence that fits; where none does, with the last clause, at a word, or inside a word
    but never inside a character or a term, as long as the budget allows. A remainder that would be short takes half of
    the slice before it.

    Args:
        text: the document.
        encoding: its pieces.
        word_starts: (tokens,) bool, the pieces that begin a word.
        max_tokens: the budget of a slice and its context.
        context_tokens: left free in every slice but the first.
        term_spans: (terms, 3), the tokens of terms, which no cut goes through.

    Raises:
        RefineError: `context_tokens` takes more than half of the budget, or there is none.
    """
    _check_budget(max_tokens, context_tokens)
    count = len(encoding.ids)
    if count <= max_tokens:
        return [slice(0, count)] if count else []
    places = _CutPlaces(text, encoding, word_starts, term_spans)
    slices = []
    at = 0
    while at < count:
        budget = max_tokens - (context_tokens if at else 0)
        left = count - at
        if left <= budget:
            end = count
        else:
            limit = at + (left // 2 if left < budget * 5 // 4 else budget)
            end = places.last(at, limit)
        slices.append(slice(at, end))
        at = end
    return slices


def _check_budget(max_tokens: int, context_tokens: int) -> None:
    if max_tokens < 1 or context_tokens < 0 or 2 * context_tokens > max_tokens:
        raise RefineError(
            "a passage needs 2 tokens at least, and its context may take half of them, found "
            f"{max_tokens + 1} tokens with {context_tokens} of context; raise the one or lower the other"
        )


def term_token_spans(text: str, encoding: Encoding, glossary: Glossary, vocabulary: Vocabulary) -> np.ndarray:
    """Token ranges that cover the glossary's terms in `text`, in order, each with the term's number.

    A piece that holds a term's end and more belongs to the term wholly, so that no part of it stays visible; two terms
    may share such a piece. A word mark of its own in front of a term belongs to it, as it does in the answer that
    restoration decodes.

    Returns:
        (terms, 3) int32: first token, token behind the last, number of the term.
    """
    matches = glossary.find_all(text)
    first = np.searchsorted(encoding.ends, matches[:, 0], side="right")
    last = np.searchsorted(encoding.starts, matches[:, 1], side="left")
    kept = last > first  # a match of characters that normalisation drops has no token
    first, last, terms = first[kept], last[kept], matches[kept, 2]
    behind_mark = (first > 0) & vocabulary.is_word_mark(encoding.ids[first - 1])
    return np.stack([first - behind_mark, last, terms], axis=1).astype(np.int32)


class _CutPlaces:
    """The tokens of a document before which a cut may go, by kind, each kind found when it is first needed."""

    def __init__(self, text: str, encoding: Encoding, word_starts: np.ndarray, term_spans: np.ndarray | None) -> None:
        self._text = text
        self._encoding = encoding
        self._word_starts = word_starts
        self._term_spans = term_spans

    def last(self, after: int, limit: int) -> int:
        """The last place in (after, limit] of the best kind that has one there; `limit` where none has."""
        for kind in ("sentences", "clauses", "words", "outside_terms", "characters"):
            places = getattr(self, kind)
            index = int(np.searchsorted(places, limit, side="right")) - 1
            if index >= 0 and places[index] > after:
                return int(places[index])
        return limit

    @cached_property
    def sentences(self) -> np.ndarray:
        return self._behind(_sentence_ends(self._text))

    @cached_property
    def clauses(self) -> np.ndarray:
        return self._behind(match.end() for match in _CLAUSE_END.finditer(self._text))

    @cached_property
    def words(self) -> np.ndarray:
        places: np.ndarray = self.outside_terms[self._word_starts[self.outside_terms]]
        return places

    @cached_property
    def outside_terms(self) -> np.ndarray:
        inside = np.zeros(len(self._encoding.ids) + 1, dtype=bool)
        for start, end, _ in [] if self._term_spans is None else self._term_spans.tolist():
            inside[start + 1 : end] = True
        places: np.ndarray = self.characters[~inside[self.characters]]
        return places

    @cached_property
    def characters(self) -> np.ndarray:
        starts, ends = self._encoding.starts, self._encoding.ends
        return np.flatnonzero((starts[1:] >= ends[:-1]) & (starts[1:] > starts[:-1])) + 1

    def _behind(self, ends: Iterable[int]) -> np.ndarray:
        """The places behind the pieces in which the text `ends`, outside terms."""
        pieces = np.searchsorted(self._encoding.ends, np.fromiter(ends, dtype=np.int64), side="left") + 1
        return np.intersect1d(pieces, self.outside_terms)


def _sentence_ends(text: str) -> Iterator[int]:
    """Yield the characters behind which a sentence or a line ends.

    A full stop of Latin script ends a sentence where a space follows, but not behind an initial or before a small
    letter (it is an abbreviation's).
    """
    for match in _SENTENCE_MARK.finditer(text):
        marks, space, following = match.groups()
        if marks.isascii() and "\n" not in marks + space:
            if following and not space:
                continue
            if marks.startswith(".") and following.islower():
                continue
            if marks == "." and _INITIAL.fullmatch(text, max(0, match.start() - 2), match.start()):
                continue
        end = match.end()
        while end and text[end - 1].isspace():  # a piece's word mark stands for the spaces before it
            end -= 1
        yield end
