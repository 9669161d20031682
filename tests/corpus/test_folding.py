from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from strategies import texts

from t5refine_peft.corpus.folding import fold


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Heart  \t failure", "heart failure"),
        ("heart\r\nfailure", "heart failure"),
        ("heart\n \nfailure", "heart\nfailure"),
        ("买卖\n合同", "买卖合同"),
        ("买卖 合同", "买卖 合同"),
        ("ＡＣＥ　ｉ", "ace i"),
        ("Cafe\u0301 ﬁx…", "café fix..."),
        ("Straße", "strasse"),
        ("ｶﾞ", "ガ"),
        ("\u1112\u1161\u11ab", "한"),
        ("fu\u00adro", "furo"),
        ("", ""),
    ],
)
def test_what_is_written_differently_folds_to_one(text, folded):
    assert fold(text).text == folded


def reference(text: str) -> str:
    """The same by the plain definition, of a text without line breaks and soft hyphens."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold())


@given(text=texts)
def test_folding_is_nfkc_case_folding_and_single_spaces(text):
    line = "".join(char for char in text if unicodedata.category(char) not in {"Cc", "Zl", "Zp", "Cf"})
    assert re.sub(r"\s+", " ", fold(line).text) == reference(line)


def ranges(text: str, starts: list[int], ends: list[int]) -> list[tuple[int, int] | None]:
    """Where ranges of the folded text lie in the text; None where one cuts through a unit."""
    first, last, real = fold(text).original(np.array(starts), np.array(ends))
    return [(int(a), int(b)) if is_real else None for a, b, is_real in zip(first, last, real, strict=True)]


@given(text=texts)
def test_every_character_leads_back_to_its_own(text):
    folded = fold(text).text
    places = ranges(text, list(range(len(folded))), list(range(1, len(folded) + 1)))
    reached = 0
    for char, place in zip(folded, places, strict=True):
        if place is None:
            continue  # within what became longer
        start, end = place
        assert reached <= start < end <= len(text)
        assert fold(text[start:end]).text == char
        reached = end


@given(text=texts)
def test_the_whole_leads_back_to_the_whole(text):
    folded = fold(text).text
    if folded:
        (place,) = ranges(text, [0], [len(folded)])
        assert place is not None
        assert fold(text[slice(*place)]).text == folded


def test_a_part_of_what_became_longer_has_no_place():
    assert ranges("a½b", [0, 1, 1, 3, 0], [1, 2, 4, 4, 5]) == [(0, 1), None, (1, 2), None, (0, 3)]
    assert ranges("买卖\n合同", [0, 1, 2], [2, 3, 4]) == [(0, 2), (1, 4), (3, 5)]
