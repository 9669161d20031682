from __future__ import annotations

import re
import unicodedata

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


@given(text=texts)
def test_every_character_leads_back_to_its_own(text):
    folded = fold(text)
    reached = 0
    for at in range(len(folded.text)):
        place = folded.original(at, at + 1)
        if place is None:
            continue  # within what became longer
        start, end = place
        assert reached <= start < end <= len(text)
        assert fold(text[start:end]).text == folded.text[at]
        reached = end


@given(text=texts)
def test_the_whole_leads_back_to_the_whole(text):
    folded = fold(text)
    if folded.text:
        place = folded.original(0, len(folded.text))
        assert place is not None
        assert fold(text[slice(*place)]).text == folded.text
