"""SentencePiece's own ids and offsets for any T5 vocabulary, and its sentinels.

The ids are those of the `sentencepiece` library, byte fallback included: transformers' `T5Tokenizer` turns it off, so
that characters outside the vocabulary are lost. Sentinels are resolved to ids once and never written as text.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import sentencepiece

from t5refine_peft.corpus.characters import CodePointTable, begins_word, code_points, may_join
from t5refine_peft.errors import RefineError

WORD_MARK = "▁"
SENTINEL_COUNT = 100
_PLAIN, _BLANK, _ODD = range(3)
"""A character that normalisation makes one of, wherever it stands; one that becomes a word mark; any other."""


@dataclass(frozen=True)
class Encoding:
    """The pieces of a text.

    Attributes:
        ids: (tokens,) int32 piece ids.
        starts: (tokens,) int32, where each piece begins in the text, in characters.
        ends: (tokens,) int32, where it ends. Pieces that share a character (its bytes, or what normalisation makes of
            it) share its range; a word mark that stands for no space of the text ends where it begins.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Vocabulary:
    """A T5 vocabulary: text to ids with offsets, and ids to text."""

    def __init__(
        self, processor: sentencepiece.SentencePieceProcessor, sentinel_ids: tuple[int, ...], digest: str
    ) -> None:
        self._processor = processor
        self.sentinel_ids = sentinel_ids
        """`<extra_id_0>` first."""
        self.pad_id: int = processor.pad_id()
        self.eos_id: int = processor.eos_id()
        self.unk_id: int = processor.unk_id()
        self.fingerprint = digest
        """Two vocabularies with one fingerprint give the same ids for any text."""

    @classmethod
    def load(cls, directory: Path, *, model_rows: int | None = None) -> Vocabulary:
        """Read `spiece.model` of a directory in the official layout.

        Args:
            directory: the base model's directory.
            model_rows: rows of the model's embedding; every id must lie inside.

        Raises:
            RefineError: no `spiece.model`, or one without sentinels inside the embedding.
        """
        path = directory / "spiece.model"
        if not path.is_file():
            raise RefineError(
                f"{directory} has no tokenizer: expected a SentencePiece model named spiece.model beside config.json; "
                "copy it from the model's original directory"
            )
        content = path.read_bytes()
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise RefineError(f"{path} is no SentencePiece model; copy it anew from its source") from error
        sentinel_ids = _sentinel_ids(processor, directory)
        highest = max(*sentinel_ids, len(processor) - 1)
        if model_rows is not None and highest >= model_rows:
            raise RefineError(
                f"{path} gives ids up to {highest}, but the model's embedding has {model_rows} rows; "
                "tokenizer and weights are not of one model"
            )
        digest = hashlib.sha256(content + repr(sentinel_ids).encode()).hexdigest()[:16]
        return cls(processor, sentinel_ids, digest)

    def __len__(self) -> int:
        return max(len(self._processor), max(self.sentinel_ids) + 1)

    def encode(self, text: str) -> Encoding:
        """Encode `text` without an end mark. Text that spells a sentinel is text: it gives ordinary pieces."""
        return self.encode_each([text], [0])[0]

    def encode_each(self, texts: Sequence[str], places: Sequence[int]) -> tuple[Encoding, np.ndarray]:
        """Encode each of `texts` as `encode` does, many at a time for the price of few calls.

        Args:
            texts: texts that stand apart in a longer one, in order.
            places: where each of them begins in it.

        Returns:
            The pieces of all texts, one after another, with offsets in the longer one; and (texts,) int64, how many
            each text has.
        """
        encoding, counts = self._encode(texts, places)
        if encoding.ids.max(initial=0) < min(self.sentinel_ids):  # true of nearly all texts
            return encoding, counts
        parts = []
        for text, place, end, count in zip(texts, places, np.cumsum(counts).tolist(), counts.tolist(), strict=True):
            own = slice(end - count, end)
            part = Encoding(encoding.ids[own], encoding.starts[own], encoding.ends[own])
            parts.append(self._without_sentinels(text, place, part))
        return _joined(parts), np.array([len(part.ids) for part in parts])

    def _without_sentinels(self, text: str, offset: int, encoding: Encoding) -> Encoding:
        """`encoding` of `text`, which lies at `offset`; encoded anew in parts where it holds a sentinel.

        The ids tell, not the spelling: normalisation folds many others (full-width letters, say) into a sentinel's.
        """
        found = np.flatnonzero(np.isin(encoding.ids, self.sentinel_ids))
        if not found.size:
            return encoding
        cuts = [0, *(self._cut(text, offset, encoding, token) for token in found.tolist()), len(text)]
        parts = [self._without_sentinels(text[: cuts[1]], offset, self._encode_one(text[: cuts[1]], offset))]
        for start, end in pairwise(cuts[1:]):
            part = text[start:end]
            parts.append(self._without_sentinels(part, offset + start, self._continue(part, offset + start)))
        return _joined(parts)

    def _cut(self, text: str, offset: int, encoding: Encoding, token: int) -> int:
        """A place in `text` inside the piece `token`: behind its first character that is no blank, the "<" mostly.

        Blanks are what normalisation makes a space or nothing of: zero-width spaces, control characters.
        """
        start, end = int(encoding.starts[token]) - offset, int(encoding.ends[token]) - offset
        visible = (at for at in range(start, end) if self._processor.normalize(text[at]).strip(WORD_MARK))
        return min(next(visible, start) + 1, end - 1)

    def encode_continuation(self, text: str) -> Encoding:
        """Encode `text` as it would stand right behind other text: no word mark is put in front of it."""
        return self._without_sentinels(text, 0, self._continue(text, 0))

    def _encode(self, texts: Sequence[str], places: Sequence[int]) -> tuple[Encoding, np.ndarray]:
        """SentencePiece's own answer for `encode_each`, sentinels and all.

        Its ids; their offsets follow from how long the pieces are, and from where each character of the normalised
        text comes from. It tells offsets itself, but takes four times as long.
        """
        each = self._processor.encode(list(texts), return_type="numpy", num_threads=1)
        counts = np.array([len(ids) for ids in each], dtype=np.int64)
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *each])
        widths = self._widths[ids]
        unknown = np.flatnonzero(ids == self.unk_id)
        if len(unknown):  # these stand for text of any length
            pieces = list(chain.from_iterable(self._processor.encode(list(texts), return_type=str, num_threads=1)))
            widths[unknown] = [len(pieces[token]) for token in unknown.tolist()]
        behind = np.append(0, np.cumsum(widths))  # normalised characters up to each piece, and to the end
        borders = np.append(0, np.cumsum(counts))
        lengths = np.diff(behind[borders])
        shift = np.repeat(behind[borders[:-1]], counts)
        ends = behind[1:] - shift
        starts = ends - np.maximum(widths, 1)
        # "▁" and the text: what comes from the text's character n is the normalised one n + 1.
        place = np.repeat(np.array(places, dtype=np.int64), counts)
        encoding = Encoding(
            ids,
            (np.maximum(starts - 1, 0) + place).astype(np.int32),
            (np.maximum(ends - 1, 0) + place).astype(np.int32),
        )
        for number in np.flatnonzero(self._changes_length(texts, lengths)).tolist():
            own = slice(borders[number], borders[number + 1])
            origins = np.array(self._processor.normalize(texts[number], with_offsets=True)[1], dtype=np.int32)
            first, last = origins[starts[own]], origins[ends[own]]
            encoding.starts[own] = first + places[number]
            encoding.ends[own] = self._whole_characters(ids[own], first, last) + places[number]
        return encoding, counts

    def _changes_length(self, texts: Sequence[str], lengths: np.ndarray) -> np.ndarray:
        """Which texts do not give one normalised character for each of theirs, behind the word mark in front.

        Args:
            texts: the texts.
            lengths: (texts,) how long they are when normalised.

        Returns:
            (texts,) bool.
        """
        kinds = self._kinds[code_points(" ".join(["", *texts, ""]))]
        odd = kinds == _ODD
        odd[1:] |= (kinds[1:] == _BLANK) & (kinds[:-1] == _BLANK)  # at the end of a text, too
        sizes = np.array([len(text) for text in texts])
        changes: np.ndarray = lengths != sizes + 1
        ends = np.cumsum(sizes + 1)  # the blank behind each text
        changes[np.searchsorted(ends, np.flatnonzero(odd))] = True
        return changes

    def _kind(self, char: str) -> int:
        """How `char` is normalised."""
        text, origins = self._processor.normalize(f"a{char}a", with_offsets=True)
        if may_join(char) or len(text) != 4 or origins != [0, 0, 1, 2, 3]:
            return _ODD
        return _BLANK if text[2] == WORD_MARK else _PLAIN

    def _encode_one(self, text: str, place: int) -> Encoding:
        return self._encode([text], [place])[0]

    def _whole_characters(self, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """`ends` where each piece of a character reaches to its end; SentencePiece tells it of the last one only."""
        inner = (starts == ends) & ~self._bare[ids]
        if not inner.any():
            return ends
        last = np.append(np.flatnonzero(starts[1:] != starts[:-1]), len(ids) - 1)  # of each run with one start
        whole = ends[last[np.searchsorted(last, np.arange(len(ids)))]]
        completed: np.ndarray = np.where(inner, whole, ends)
        return completed

    def _continue(self, text: str, offset: int) -> Encoding:
        """Encode behind a neutral prefix, so that SentencePiece's own leading word mark falls on the prefix."""
        found = self._encode_one(self._prefix + text, offset - len(self._prefix))
        keep = found.starts >= offset
        return Encoding(found.ids[keep], found.starts[keep], found.ends[keep])

    @cached_property
    def _prefix(self) -> str:
        """A character that no piece of the vocabulary joins to another, so that a cut behind it is clean."""
        joined = {char for i in range(len(self._processor)) for char in self._piece(i).lstrip(WORD_MARK)[:-1]}
        candidates = ("\u2044", "\u00a4", "\u2020", "\u2021", "\u00a7", "\u00b6", "\u2042")
        free = [c for c in candidates if c not in joined and unicodedata.normalize("NFKC", c) == c]
        if not free:
            raise RefineError("the vocabulary joins every candidate for a neutral prefix; please report this tokenizer")
        return free[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: word marks as spaces, bytes joined to characters; special ids give nothing."""
        out: list[str] = []
        pending = bytearray()
        special = self._special
        for token in map(int, ids):
            if token < len(self._processor) and self._processor.is_byte(token):
                pending.append(_byte_value(self._piece(token)))
                continue
            if pending:
                out.append(pending.decode("utf-8", errors="replace"))
                pending.clear()
            if token not in special and token < len(self._processor):
                out.append(self._piece(token).replace(WORD_MARK, " "))
        out.append(pending.decode("utf-8", errors="replace"))
        return "".join(out)

    def words(self, encoding: Encoding, text: str) -> np.ndarray:
        """Mark the pieces that begin a word.

        A piece does so where it carries the word mark or a word begins at its first character (see `begins_word`); the
        piece behind a word mark of its own does not, nor do the pieces inside a character.

        Returns:
            (tokens,) bool.
        """
        if not len(encoding.ids):
            return np.zeros(0, dtype=bool)
        bare = self._bare[encoding.ids]
        begins = np.append(begins_word(text), False)[encoding.starts]
        begins[1:] &= ~bare[:-1] & (encoding.starts[1:] != encoding.starts[:-1])
        starts: np.ndarray = begins | self._marked[encoding.ids]
        starts[0] = True
        return starts

    def is_word_mark(self, ids: np.ndarray) -> np.ndarray:
        """Tell which of `ids`, (tokens,), are a word mark and nothing else; returns (tokens,) bool."""
        marks: np.ndarray = self._bare[ids]
        return marks

    def uncovered(self, text: str) -> str:
        """The characters of `text` that no piece holds, once each: spelled in bytes, or unknown."""
        encoding = self.encode(text)
        lost = self._byte[encoding.ids] | (encoding.ids == self.unk_id)
        chars = [text[start:end] for start, end in zip(encoding.starts[lost], encoding.ends[lost], strict=True)]
        return "".join(dict.fromkeys("".join(chars)))

    def log_probability(self, ids: np.ndarray) -> float:
        """The sum of the pieces' scores, in nats: what the tokenizer's unigram model expects of them."""
        return float(self._scores[ids].sum())

    def pieces(self) -> list[str]:
        """The spelling of each id, sentinels too; no two are the same."""
        spelled = [self._piece(token) for token in range(len(self._processor))]
        sentinels = {token: f"<extra_id_{number}>" for number, token in enumerate(self.sentinel_ids)}
        behind = [sentinels.get(token, f"<unused_{token}>") for token in range(len(spelled), len(self))]
        return spelled + behind

    @cached_property
    def visible_characters(self) -> np.ndarray:
        """How many characters each id adds to a text, word marks aside; a character in bytes counts with its first.

        Returns:
            (ids,) int64; 0 for special ids and for bytes inside a character.
        """
        pieces = range(len(self._processor))
        lengths = np.zeros(len(self), dtype=np.int64)
        lengths[: len(pieces)] = self._widths - [self._piece(token).count(WORD_MARK) for token in pieces]
        lengths[list(self._special)] = 0
        return lengths

    @cached_property
    def byte_values(self) -> np.ndarray:
        """The byte that each id stands for, (ids,) int64; -1 for all other pieces."""
        values = np.full(len(self), -1, dtype=np.int64)
        for token in np.flatnonzero(self._byte).tolist():
            values[token] = _byte_value(self._piece(token))
        return values

    @cached_property
    def word_marked(self) -> np.ndarray:
        """The ids that begin with the word mark, or are it, (ids,) bool."""
        marked = np.zeros(len(self), dtype=bool)
        marked[: len(self._processor)] = self._marked
        return marked

    def _piece(self, token: int) -> str:
        return str(self._processor.id_to_piece(token))

    @cached_property
    def _kinds(self) -> CodePointTable:
        return CodePointTable(self._kind, np.int8)

    @cached_property
    def _widths(self) -> np.ndarray:
        """Characters of the normalised text that each piece stands for; of those in bytes the first has them."""
        widths = np.array([len(self._piece(token)) for token in range(len(self._processor))], dtype=np.int64)
        values = self.byte_values[: len(widths)]
        widths[values >= 0] = 1
        widths[(values >= 0x80) & (values < 0xC0)] = 0
        return widths

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset((self.pad_id, self.eos_id, self.unk_id, *self.sentinel_ids))

    @cached_property
    def _marked(self) -> np.ndarray:
        return np.array([self._piece(i).startswith(WORD_MARK) for i in range(len(self._processor))])

    @cached_property
    def _bare(self) -> np.ndarray:
        return np.array([self._piece(i) == WORD_MARK for i in range(len(self._processor))])

    @cached_property
    def _scores(self) -> np.ndarray:
        return np.array([self._processor.get_score(i) for i in range(len(self._processor))])

    @cached_property
    def _byte(self) -> np.ndarray:
        return np.array([self._processor.is_byte(i) for i in range(len(self._processor))])


def _byte_value(piece: str) -> int:
    """The byte that a piece like `<0xE4>` stands for."""
    return int(piece[3:5], 16)


def _joined(parts: Sequence[Encoding]) -> Encoding:
    """The pieces of `parts`, one after another."""
    return Encoding(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
    )


def _sentinel_ids(processor: sentencepiece.SentencePieceProcessor, directory: Path) -> tuple[int, ...]:
    """The sentinels' ids: pieces of the model in either spelling, or, as in T5 v1, ids behind the last piece."""
    for spelling in (WORD_MARK + "<extra_id_{}>", "<extra_id_{}>"):
        ids = tuple(processor.piece_to_id(spelling.format(number)) for number in range(SENTINEL_COUNT))
        if processor.unk_id() not in ids:
            return ids
    config = directory / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    count = int(settings.get("extra_ids") or SENTINEL_COUNT)
    return tuple(len(processor) + count - 1 - number for number in range(count))
