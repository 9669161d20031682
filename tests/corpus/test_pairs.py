from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft.corpus.corruption import build_example
from t5refine_peft.corpus.pairs import encode_pair, join_pair

plain = texts.filter(lambda text: not re.search(r"<extra_id_\d+>", text))


@given(st.lists(plain, min_size=3, max_size=9).filter(lambda parts: len(parts) % 2), st.booleans())
def test_the_whole_is_what_was_cut_apart(parts: list[str], closed: bool):
    count = len(parts) // 2
    inputs = parts[0] + "".join(f"<extra_id_{n}>{parts[2 * n + 2]}" for n in range(count))
    targets = "".join(f"<extra_id_{n}>{parts[2 * n + 1]}" for n in range(count)) + f"<extra_id_{count}>" * closed
    text, masked = join_pair(inputs, targets)
    assert text == "".join(parts)
    assert [text[start:end] for start, end in masked] == parts[1::2]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ("a", "b", "expected <extra_id_0> in the inputs, found no sentinel"),
        ("a <extra_id_0> <extra_id_0>", "", "expected the inputs' sentinels to count up from 0, found 0, 0"),
        ("a <extra_id_0>", "b", "expected targets for the sentinels 0, found none"),
        ("a <extra_id_0>", "x <extra_id_0> b", "expected targets for the sentinels 0, found 0"),
        ("<extra_id_0>", "<extra_id_0> b <extra_id_1> c", "expected targets for the sentinels 0, found 0, 1"),
        ("".join(f"<extra_id_{n}>" for n in range(101)), "", "expected at most 100 sentinels, found 101"),
    ],
)
def test_what_does_not_fit_together_is_told(inputs: str, targets: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        join_pair(inputs, targets)


def test_inputs_and_targets_are_encoded_as_they_would_be_apart(vocabulary):
    text, masked = join_pair(
        "The patient takes <extra_id_0> for <extra_id_1> congestion. 出卖人应当交付<extra_id_2>。",
        "<extra_id_0> furosemide <extra_id_1> pulmonary <extra_id_2> 标的物",
    )
    encoding, spans = encode_pair(text, masked, vocabulary)
    example = build_example(encoding.ids, [(*span, False) for span in spans], vocabulary=vocabulary)
    reference = vocabulary._processor  # SentencePiece itself, on the text with the sentinels where it knows them
    wanted = reference.encode("The patient takes <extra_id_0> for <extra_id_1> congestion. 出卖人应当交付 <extra_id_2>")
    assert example.input_ids.tolist() == [*wanted, *vocabulary.encode_continuation("。").ids, vocabulary.eos_id]
    hidden = reference.encode("<extra_id_0> furosemide <extra_id_1> pulmonary <extra_id_2> 标的物")
    assert example.labels.tolist() == [*hidden, vocabulary.eos_id]
    for token, (start, end) in enumerate(zip(encoding.starts, encoding.ends, strict=True)):
        assert vocabulary.decode(encoding.ids[token : token + 1]).strip() in text[start:end]
    assert (np.diff(encoding.starts) >= 0).all()
