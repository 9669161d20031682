"""SentencePiece's own ids and offsets for any T5 vocabulary, and its sentinels.

The ids are those of the `sentencepiece` library, byte fallback included: transformers' `T5Tokenizer` turns it off, so
that characters outside the vocabulary are lost. Sentinels are resolved to ids once and never written as text.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece

from t5refine_peft.errors import RefineError

WORD_MARK = "▁"
SENTINEL_COUNT = 100
_NO_WORD_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Scripts written without spaces: Thai, Lao, Burmese, Khmer, Kana, Han. Each of their pieces may begin a word."""


@dataclass(frozen=True)
class Encoding:
    """The pieces of a text.

    Attributes:
        ids: (tokens,) int32 piece ids.
        starts: (tokens,) int32, where each piece begins in the text, in characters.
        ends: (tokens,) int32, where it ends; a byte that does not complete its character ends where it begins.
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
        return self._without_sentinels(text, 0, self._encode(text, 0))

    def _without_sentinels(self, text: str, offset: int, encoding: Encoding) -> Encoding:
        """`encoding` of `text`, which lies at `offset`; encoded anew in parts where it holds a sentinel.

        The ids tell, not the spelling: normalisation folds many others (full-width letters, say) into a sentinel's.
        """
        if encoding.ids.max(initial=0) < min(self.sentinel_ids):  # true of nearly every text
            return encoding
        found = np.flatnonzero(np.isin(encoding.ids, self.sentinel_ids))
        if not found.size:
            return encoding
        cuts = [0, *(self._cut(text, offset, encoding, token) for token in found.tolist()), len(text)]
        parts = [self._without_sentinels(text[: cuts[1]], offset, self._encode(text[: cuts[1]], offset))]
        for start, end in pairwise(cuts[1:]):
            part = text[start:end]
            parts.append(self._without_sentinels(part, offset + start, self._continue(part, offset + start)))
        return Encoding(
            *(np.concatenate(arrays) for arrays in zip(*((p.ids, p.starts, p.ends) for p in parts), strict=True))
        )

    @staticmethod
    def _cut(text: str, offset: int, encoding: Encoding, token: int) -> int:
        """A place in `text` inside the piece `token`: behind its first character that is no space, the "<" mostly."""
        start, end = int(encoding.starts[token]) - offset, int(encoding.ends[token]) - offset
        spelling = text[start:end]
        return min(end - len(spelling.lstrip()) + 1, end - 1)

    def encode_continuation(self, text: str) -> Encoding:
        """Encode `text` as it would stand right behind other text: no word mark is put in front of it."""
        return self._without_sentinels(text, 0, self._continue(text, 0))

    def _encode(self, text: str, offset: int) -> Encoding:
        found = self._processor.encode_as_offset_mapping(text)
        offsets = np.array(found["offsets"], dtype=np.int32).reshape(-1, 2) + np.int32(offset)
        return Encoding(np.array(found["ids"], dtype=np.int32), offsets[:, 0], offsets[:, 1])

    def _continue(self, text: str, offset: int) -> Encoding:
        """Encode behind a neutral prefix, so that SentencePiece's own leading word mark falls on the prefix."""
        found = self._encode(self._prefix + text, offset - len(self._prefix))
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
                pending.append(int(self._piece(token)[3:5], 16))
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

        A piece does so where it carries the word mark, where its first character is no letter or digit, where the
        character before it is none, or in scripts without spaces. A byte inside a character never does.

        Returns:
            (tokens,) bool.
        """
        marked, bare = self._marked[encoding.ids], self._bare[encoding.ids]
        first = np.fromiter(
            (_begins_word(text, start) for start in encoding.starts.tolist()), dtype=bool, count=len(encoding.ids)
        )
        starts: np.ndarray = marked | first
        behind_bare = np.zeros_like(starts)
        behind_bare[1:] = bare[:-1]  # a word mark of its own begins the word; the piece behind it goes on
        starts &= ~behind_bare
        continued = np.zeros_like(starts)
        continued[1:] = (encoding.starts[1:] == encoding.starts[:-1]) & self._byte[encoding.ids[1:]]
        starts &= ~(continued & self._byte[np.roll(encoding.ids, 1)])
        if len(starts):
            starts[0] = True
        return starts

    @cached_property
    def visible_characters(self) -> np.ndarray:
        """How many characters each id adds to a text, word marks aside; a character in bytes counts with its first.

        Returns:
            (ids,) int64; 0 for special ids and for bytes inside a character.
        """
        lengths = np.zeros(len(self), dtype=np.int64)
        for token in range(len(self._processor)):
            if token not in self._special:
                lengths[token] = len(self._piece(token).replace(WORD_MARK, ""))
        values = self.byte_values
        lengths[values >= 0] = 1
        lengths[(values >= 0x80) & (values < 0xC0)] = 0
        return lengths

    @cached_property
    def byte_values(self) -> np.ndarray:
        """The byte that each id stands for, (ids,) int64; -1 for all other pieces."""
        values = np.full(len(self), -1, dtype=np.int64)
        for token in range(len(self._processor)):
            if self._processor.is_byte(token):
                values[token] = int(self._piece(token)[3:5], 16)
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
    def _special(self) -> frozenset[int]:
        return frozenset((self.pad_id, self.eos_id, self.unk_id, *self.sentinel_ids))

    @cached_property
    def _marked(self) -> np.ndarray:
        return np.array([self._piece(i).startswith(WORD_MARK) for i in range(len(self._processor))])

    @cached_property
    def _bare(self) -> np.ndarray:
        return np.array([self._piece(i) == WORD_MARK for i in range(len(self._processor))])

    @cached_property
    def _byte(self) -> np.ndarray:
        return np.array([self._processor.is_byte(i) for i in range(len(self._processor))])


def written_without_spaces(char: str) -> bool:
    """Whether `char` is of a script that puts no spaces between words (Han, Kana, Thai, Lao, Khmer, Burmese)."""
    return _NO_WORD_SPACES.match(char) is not None


def _begins_word(text: str, at: int) -> bool:
    if at >= len(text):
        return False
    char = text[at]
    if not char.isalnum() or written_without_spaces(char):
        return not unicodedata.combining(char)
    return at == 0 or not text[at - 1].isalnum() or written_without_spaces(text[at - 1])


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
