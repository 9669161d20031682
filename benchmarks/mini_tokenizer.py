"""Train the built-in base's tokenizer: SentencePiece unigram in mT5's layout, with the sentinels on top."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mini_text import everyday_documents

PIECES = 12_000
SENTINELS = 100
LINES_OF_EACH_CORPUS = 20_000


def train_tokenizer(directory: Path, corpora: list[Path], *, seed: int) -> None:
    """Write `spiece.model` and the two JSON files that official mT5 directories hold beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    prefix = directory / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(corpora, seed),
        model_prefix=str(prefix),
        model_type="unigram",
        vocab_size=PIECES,
        character_coverage=0.9995,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        max_sentence_length=20_000,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(prefix.with_suffix(".model").read_bytes())
    for number in reversed(range(SENTINELS)):
        piece = model.pieces.add()
        piece.piece, piece.score = f"▁<extra_id_{number}>", 0.0
    (directory / "spiece.model").write_bytes(model.SerializeToString())
    for leftover in directory.glob("pieces.*"):
        leftover.unlink()
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None, **tokens}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2) + "\n", encoding="utf-8")


def _lines(corpora: list[Path], seed: int) -> Iterator[str]:
    picker = random.Random(seed)
    yield from everyday_documents(LINES_OF_EACH_CORPUS, split="train", seed=seed)
    for path in corpora:
        lines = path.read_text(encoding="utf-8").splitlines()
        yield from picker.sample(lines, min(len(lines), LINES_OF_EACH_CORPUS))
