from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given
from strategies import texts

from t5refine_peft import RefineError
from t5refine_peft.corpus.tokenization import Vocabulary


@pytest.fixture(scope="module")
def processor(tokenizer_dir: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "spiece.model"))


@given(text=texts)
def test_ids_are_sentencepieces_own_where_no_sentinel_is_spelled(vocabulary, processor, text):
    expected = processor.encode(text)
    assume(not set(expected) & set(vocabulary.sentinel_ids))
    encoding = vocabulary.encode(text)
    assert encoding.ids.tolist() == expected
    assert vocabulary.unk_id not in encoding.ids


@given(text=texts)
def test_text_never_gives_a_sentinel_and_offsets_stay_in_order(vocabulary, text):
    encoding = vocabulary.encode(text)
    assert not set(encoding.ids.tolist()) & set(vocabulary.sentinel_ids)
    assert (np.diff(encoding.starts) >= 0).all()
    assert (np.diff(encoding.ends) >= 0).all()
    assert len(encoding.ids) == 0 or (encoding.starts.min() >= 0 and encoding.ends.max() <= len(text))


@pytest.mark.parametrize(
    "spelling", ["<extra_id_3>", "＜extra_id_3＞", "<extra_id_³>", "<ext\x01ra_id_3>", "  <extra_id_3>"]
)
@pytest.mark.parametrize("before", ["", "heart", "合同", "heart  "])
def test_no_spelling_of_a_sentinel_gives_its_id(vocabulary, before, spelling):
    text = f"{before} {spelling}{spelling} x"
    for encoding in (vocabulary.encode(text), vocabulary.encode_continuation(text)):
        assert not set(encoding.ids.tolist()) & set(vocabulary.sentinel_ids)
        assert vocabulary.decode(encoding.ids).strip().endswith("<extra_id_3> x")


def test_a_spelled_sentinel_comes_back_as_text(vocabulary):
    text = "see <extra_id_3> and<extra_id_12>."
    assert vocabulary.decode(vocabulary.encode(text).ids).strip() == text


def test_sentinels_descend_from_the_top(vocabulary):
    assert vocabulary.sentinel_ids == tuple(range(len(vocabulary) - 1, len(vocabulary) - 101, -1))


def test_bytes_become_characters_again(vocabulary):
    ids = vocabulary.encode("心 龘 😀").ids
    assert vocabulary.decode(ids).strip() == "心 龘 😀"
    assert "\ufffd" in vocabulary.decode(ids[:-1])


def test_special_ids_give_no_text(vocabulary):
    assert vocabulary.decode([vocabulary.pad_id, vocabulary.eos_id, vocabulary.sentinel_ids[7]]) == ""


def test_a_continuation_gets_no_word_mark(vocabulary):
    assert vocabulary.decode(vocabulary.encode_continuation("patient").ids) == "patient"
    assert vocabulary.decode(vocabulary.encode_continuation(" patient").ids) == " patient"
    assert vocabulary.decode(vocabulary.encode("patient").ids) == " patient"


def test_words_begin_at_words(vocabulary):
    text = "The patient takes 标的物."
    encoding = vocabulary.encode(text)
    begins = {
        int(start) for start, begin in zip(encoding.starts, vocabulary.words(encoding, text), strict=True) if begin
    }
    assert text.index(".") in begins
    assert {text.index(" 标"), text.index("标")} & begins  # a word mark of its own begins the word behind it
    assert text.index("tient") not in begins


def test_a_directory_without_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(RefineError, match=r"has no tokenizer: expected .* spiece\.model"):
        Vocabulary.load(tmp_path)


def test_an_embedding_too_small_for_the_sentinels_is_refused(tokenizer_dir: Path):
    with pytest.raises(RefineError, match="the model's embedding has 300 rows"):
        Vocabulary.load(tokenizer_dir, model_rows=300)


def test_a_broken_model_file_is_named(tmp_path: Path):
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(RefineError, match="is no SentencePiece model"):
        Vocabulary.load(tmp_path)


def test_sentinels_behind_the_last_piece_as_in_t5_v1(tmp_path: Path, tokenizer_dir: Path):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((tokenizer_dir / "spiece.model").read_bytes())
    del model.pieces[-100:]
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    vocabulary = Vocabulary.load(tmp_path)
    assert vocabulary.sentinel_ids[0] == len(model.pieces) + 99
    assert vocabulary.sentinel_ids[99] == len(model.pieces)
