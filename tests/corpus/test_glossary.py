from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from strategies import texts

from t5refine_peft import Glossary, RefineError


def found(glossary: Glossary, text: str) -> list[str]:
    return [text[match.start : match.end] for match in glossary.find(text)]


def test_longest_first_and_whole_words():
    glossary = Glossary(["heart", "heart failure", "rate"])
    assert found(glossary, "Heart failure, heart rate, hearts, irate") == ["Heart failure", "heart", "rate"]


def test_no_word_borders_in_han():
    assert found(Glossary(["合同", "买卖合同"]), "订立买卖合同后，合同生效") == ["买卖合同", "合同"]


def test_width_case_and_combined_marks_match_and_map_back():
    assert found(Glossary(["ACE inhibitor", "café"]), "an ＡＣＥ　inhibitor at the Cafe\u0301.") == [
        "ＡＣＥ　inhibitor",
        "Cafe\u0301",
    ]


@given(text=texts)
def test_every_match_is_a_term_and_none_overlap(text):
    glossary = Glossary(["心力衰竭", "合同", "heart", "x", "a1"])
    reached = 0
    for match in glossary.find(text):
        assert reached <= match.start < match.end <= len(text)
        reached = match.end
        assert Glossary([text[match.start : match.end]]).terms
        again = glossary.find(text[match.start : match.end])
        assert match.term in [other.term for other in again]


def test_blank_and_repeated_lines_are_dropped(tmp_path: Path):
    path = tmp_path / "terms.txt"
    path.write_text("# a comment\nheart\n\n  \nHeart\n心\n", encoding="utf-8")
    assert Glossary.load(path).terms == ("heart", "心")


def test_a_glossary_of_blank_lines_is_refused(tmp_path: Path):
    path = tmp_path / "terms.txt"
    path.write_text("\n   \n", encoding="utf-8")
    with pytest.raises(RefineError, match=r"terms\.txt: the glossary holds no term"):
        Glossary.load(path)
