from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given
from hypothesis import strategies as st
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


@pytest.fixture(scope="module")
def without_bytes(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A vocabulary like T5 v1's: characters that it does not know are unknown pieces."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((tokenizer_dir / "spiece.model").read_bytes())
    model.trainer_spec.byte_fallback = False
    for piece in model.pieces:
        if piece.type == piece.BYTE:
            piece.type = piece.NORMAL
    directory = tmp_path_factory.mktemp("without_bytes")
    (directory / "spiece.model").write_bytes(model.SerializeToString())
    return directory


@given(parts=st.lists(texts, max_size=4))
@pytest.mark.parametrize("bytes_fall_back", [True, False])
def test_offsets_are_sentencepieces_own(tokenizer_dir, without_bytes, bytes_fall_back, parts):
    directory = tokenizer_dir if bytes_fall_back else without_bytes
    vocabulary = Vocabulary.load(directory)
    own = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model"))
    told = [own.encode_as_offset_mapping(part) for part in parts]
    assume(not any(set(one["ids"]) & set(vocabulary.sentinel_ids) for one in told))
    places = [len("".join(parts[:number])) for number in range(len(parts))]
    encoding, counts = vocabulary.encode_each(parts, places)
    assert counts.tolist() == [len(one["ids"]) for one in told]
    offsets = [(s + place, e + place) for one, place in zip(told, places, strict=True) for s, e in one["offsets"]]
    assert encoding.starts.tolist() == [start for start, _ in offsets]
    # It tells the end of a character only with the last of its pieces; elsewhere an end is exactly its.
    for end, (start, told_end) in zip(encoding.ends.tolist(), offsets, strict=True):
        assert end == told_end or (start == told_end < end)


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


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff", "▁", "\x7f\u2028"])
def test_a_blank_of_any_kind_before_a_spelled_sentinel_is_a_space(vocabulary, blank):
    assert vocabulary.decode(vocabulary.encode(f"合同{blank}<extra_id_3>").ids).strip() == "合同 <extra_id_3>"


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
