"""Traps of the tokenizer."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from t5refine_peft.traps.finding import Attempt, Status


def _byte_fallback() -> tuple[Status, str]:
    vocabulary = _vocabulary()
    text = "\U0001f9ec\u9f98"
    ids = vocabulary.encode(text).ids
    if vocabulary.decode(ids.tolist()).strip() != text:
        return "broken", "characters outside the vocabulary are lost"
    if vocabulary.unk_id not in _stock_ids(text):
        return "ok", "T5Tokenizer keeps characters outside the vocabulary"
    return "handled", "T5Tokenizer makes them <unk>; ids are SentencePiece's own, which keep them"


def _sentinels() -> tuple[Status, str]:
    vocabulary = _vocabulary()
    if set(vocabulary.encode("a <extra_id_3> b").ids.tolist()) & set(vocabulary.sentinel_ids):
        return "broken", "a user's literal <extra_id_3> becomes a sentinel"
    if vocabulary.sentinel_ids[0] in _stock_ids("\u836f<extra_id_0>\u54c1"):
        return "ok", "T5Tokenizer finds sentinels in any text"
    return "handled", "T5Tokenizer breaks them into pieces after Chinese; none is ever written as text"


def _sentinel_ids() -> tuple[Status, str]:
    import sentencepiece

    vocabulary = _vocabulary()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(_directory() / "spiece.model"))
    for number, token in enumerate(vocabulary.sentinel_ids):
        if not pieces.id_to_piece(token).endswith(f"<extra_id_{number}>"):
            return "broken", f"the piece {token} is not <extra_id_{number}>"
    stock = _stock_tokenizer()
    if stock.convert_tokens_to_ids("<extra_id_0>") == vocabulary.sentinel_ids[0]:
        return "ok", "T5Tokenizer knows the ids of the sentinels"
    return "handled", "T5Tokenizer takes <extra_id_0> for <unk>; the ids are read from the vocabulary itself"


def _sentinels_decoded() -> tuple[Status, str]:
    told = _stock_tokenizer().decode([_vocabulary().sentinel_ids[0]], skip_special_tokens=True)
    if "extra_id" not in told:
        return "ok", "T5Tokenizer leaves sentinels out of a decoded text"
    return "handled", "T5Tokenizer decodes sentinels as text; answers are cut between their ids"


def _ids_past_the_vocabulary() -> tuple[Status, str]:
    from transformers import T5Tokenizer

    vocabulary = _vocabulary()
    with TemporaryDirectory() as place:  # without tokenizer_config.json, that says extra_ids: 0
        (Path(place) / "spiece.model").write_bytes((_directory() / "spiece.model").read_bytes())
        added = len(T5Tokenizer.from_pretrained(place)) - len(vocabulary)
    if max(vocabulary.sentinel_ids) >= len(vocabulary):
        return "broken", "sentinels lie past the vocabulary"
    if added > 0:
        return "handled", f"without extra_ids: 0 T5Tokenizer adds {added} ids past the vocabulary; none of it is used"
    return "ok", "T5Tokenizer adds no ids past the vocabulary"


def _offsets() -> tuple[Status, str]:
    text = "\uff34he  \uff12 mg"  # full-width letters, two spaces
    encoding = _vocabulary().encode(text)
    covered = {at for start, end in zip(encoding.starts, encoding.ends, strict=True) for at in range(start, end)}
    if not {at for at, char in enumerate(text) if char != " "} <= covered:
        return "broken", "offsets do not lie in the text as it was before normalisation"
    decoded = _stock_tokenizer().decode(_stock_ids(text), skip_special_tokens=True)
    if decoded == text:
        return "ok", "what was encoded decodes to the text"
    return "handled", f"{text!r} decodes to {decoded!r}; answers are put into the user's own characters"


def _protobuf() -> tuple[Status, str]:
    if find_spec("google") is not None and find_spec("google.protobuf") is not None:
        return "ok", "transformers can read spiece.model"
    return "handled", "transformers can't read spiece.model without protobuf; sentencepiece itself reads it"


def _directory() -> Path:
    from t5refine_peft.modeling.location import base_directory

    return base_directory("builtin:mt5-mini")


def _vocabulary() -> Any:
    from t5refine_peft.corpus.tokenization import Vocabulary

    return Vocabulary.load(_directory())


def _stock_tokenizer() -> Any:
    """Of transformers."""
    from transformers import T5Tokenizer

    return T5Tokenizer.from_pretrained(_directory())


def _stock_ids(text: str) -> list[int]:
    ids: list[int] = _stock_tokenizer()(text).input_ids
    return ids


ATTEMPTS: dict[str, Attempt] = {
    "byte fallback": _byte_fallback,
    "sentinels in text": _sentinels,
    "the sentinels' ids": _sentinel_ids,
    "sentinels that are decoded": _sentinels_decoded,
    "ids past the vocabulary": _ids_past_the_vocabulary,
    "decoding is not the text": _offsets,
    "protobuf": _protobuf,
}
