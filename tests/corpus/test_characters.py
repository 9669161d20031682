from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from strategies import texts

from t5refine_peft.corpus.characters import begins_word, extends_character, written_without_spaces


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The heart, 2nd", ["The", " ", "heart", ",", " ", "2nd"]),
        ("订立合同 ok", ["订", "立", "合", "同", " ", "ok"]),
        ("CT检查x", ["CT", "检", "查", "x"]),
        ("심부전은 x", ["심부전은", " ", "x"]),
        ("เขา", ["เ", "ข", "า"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("x\u0302\u0323y z", ["x\u0302\u0323y", " ", "z"]),
        ("👩\u200d⚕️!", ["👩\u200d⚕️", "!"]),
        ("👍🏽a", ["👍🏽", "a"]),
        ("葛\U000e0100飾𠮷x", ["葛\U000e0100", "飾", "𠮷", "x"]),
        ("", []),
    ],
)
def test_words_begin_where_the_script_has_them(text, words):
    borders = [*(at for at, begins in enumerate(begins_word(text)) if begins), len(text)]
    assert [text[start:end] for start, end in pairwise(borders)] == words


@given(text=texts)
def test_every_character_is_told_as_by_the_plain_rule(text):
    """The rule of `begins_word`, one character at a time, for texts without accents and joiners."""
    plain = "".join(char for char in text if not extends_character(char))

    def spaced(char: str) -> bool:
        return char.isalnum() and not written_without_spaces(char)

    expected = [at == 0 or not (spaced(plain[at]) and spaced(plain[at - 1])) for at in range(len(plain))]
    assert begins_word(plain).tolist() == expected
