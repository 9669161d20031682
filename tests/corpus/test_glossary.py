from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft import Glossary, RefineError
from t5refine_peft.corpus.term_lists import Term


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


@pytest.mark.parametrize(
    "text",
    [
        "heart  failure",
        "Heart\nfailure",
        "heart\r\n  failure",
        "heart\u00a0failure",
        "heart\u3000FAILURE",
        "heart fail\u00adure",
    ],
)
def test_spaces_and_line_breaks_in_a_term_do_not_hide_it(text):
    glossary = Glossary(["heart failure"])
    assert found(glossary, f"a {text}, b") == [text]


def test_a_wrapped_line_of_han_does_not_hide_a_term_and_a_blank_line_ends_one():
    glossary = Glossary(["买卖合同", "heart failure"])
    assert found(glossary, "订立买卖\n合同。") == ["买卖\n合同"]
    assert found(glossary, "买卖\n\n合同 heart\n\nfailure") == []


def test_a_list_may_have_double_spaces_too():
    assert found(Glossary(["heart  failure"]), "heart failure") == ["heart failure"]


@pytest.mark.parametrize(
    ("term", "text", "matches"),
    [
        ("act", "facts, the act; ACT", ["act", "ACT"]),  # Latin
        ("суд", "судья и суд", ["суд"]),  # Cyrillic
        ("νόμος", "ΝΌΜΟΣ παρανόμος", ["ΝΌΜΟΣ"]),  # Greek
        ("법원", "대법원 법원 법원은", ["법원"]),  # Hangul
        ("法院", "人民法院", ["法院"]),  # Han
        ("テスト", "ペーパーテスト中", ["テスト"]),  # Kana
        ("ศาล", "ที่ศาลฎีกา", ["ศาล"]),  # Thai
        ("CT", "做CT检查", ["CT"]),  # Latin in Han
        ("B12", "vitamin B12, B123", ["B12"]),
        ("fi", "\ufb01n \ufb01", ["\ufb01"]),
        ("1", "½ 1", ["1"]),  # not a part of one character
        ("x", "x\u0302 x", ["x"]),
        ("y", "x\u0302y y", ["y"]),  # an accent that joins no letter ends no word
        ("दय", "हृदय दय", ["दय"]),  # nor does a vowel sign
        ("A", "A\U000e0100 A", ["A"]),
    ],
)
def test_words_are_whole_where_the_script_has_words(term, text, matches):
    assert found(Glossary([term]), text) == matches


def plain_find(terms: list[str], text: str) -> list[tuple[int, int, int]]:
    """Leftmost and longest by trying every term at every place, for plain ASCII."""

    def stands_alone(start: int, end: int) -> bool:
        return not (start and (text[start - 1] + text[start]).isalnum()) and not (
            end < len(text) and (text[end - 1] + text[end]).isalnum()
        )

    matches, at = [], 0
    while at < len(text):
        lengths = [
            (len(term), number)
            for number, term in enumerate(terms)
            if text.startswith(term, at) and stands_alone(at, at + len(term))
        ]
        if lengths:
            length, number = max(lengths)
            matches.append((at, at + length, number))
            at += length
        else:
            at += 1
    return matches


@given(
    terms=st.lists(
        st.text("ab ", min_size=1, max_size=5).map(str.split).map(" ".join).filter(bool), min_size=1, unique=True
    ),
    text=st.text("ab ,", max_size=60).map(lambda text: re.sub(" +", " ", text)),
)
def test_matches_are_those_of_the_plain_definition(terms, text):
    assert [tuple(match) for match in Glossary(terms).find(text)] == plain_find(terms, text)


def test_a_match_inside_what_became_longer_hides_no_other():
    glossary = Glossary(["1", "2 ml", "1⁄2 m"])
    assert found(glossary, "½ 2 ml, 1 or 1⁄2 m") == ["2 ml", "1", "1⁄2 m"]
    assert found(Glossary(["x", "y\u0302"]), "x\u0302 x y\u0302") == ["x", "y\u0302"]


def test_stand_ins_for_borders_are_no_letters_in_a_text():
    begin, end = chr(ord("a") + 0x40000), chr(ord("b") + 0x80000)
    assert found(Glossary(["ab"]), f"{begin}{end} ab") == ["ab"]
    assert found(Glossary(["ab"]), "\ud800ab") == ["ab"]


def test_a_glossary_can_be_sent_to_another_process():
    glossary = Glossary(["heart failure", "heart"])
    text = "heart failure, heart"
    matches = glossary.find(text)
    assert pickle.loads(pickle.dumps(glossary)).find(text) == matches


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


def test_variants_are_found_as_their_term():
    glossary = Glossary([Term("heart failure", ("HF", "cardiac insufficiency")), "heart"])
    matches = glossary.find("HF, or cardiac  insufficiency, is heart failure")
    assert [match.term for match in matches] == [0, 0, 0]
    assert glossary.terms == ("heart failure", "heart")


def test_a_spelling_of_two_terms_is_the_first_ones():
    glossary = Glossary([Term("heart failure", ("HF",)), Term("hay fever", ("hf",)), "Heart  Failure"])
    assert [match.term for match in glossary.find("hf")] == [0]
    assert glossary.terms == ("heart failure", "hay fever")
    assert glossary.repeated == ("hf", "Heart  Failure")


def test_the_fingerprint_is_of_what_is_found():
    plain = Glossary(["a", "b"])
    assert plain.fingerprint == Glossary([Term("a", weight=3.0), "b"]).fingerprint
    assert plain.fingerprint != Glossary([Term("a", ("b",))]).fingerprint


@pytest.mark.parametrize(("name", "delimiter"), [("terms.csv", ","), ("terms.tsv", "\t")])
def test_a_table_with_variants_and_weights(tmp_path: Path, name: str, delimiter: str):
    rows = [
        ["Term", "weight", "variant", "variant"],
        ["heart failure", "2.5", "HF", "cardiac insufficiency"],
        ["furosemide"],
        ["oedema", "", "edema"],
        [],
        ["ascites", "0", "", "hydroperitoneum"],
    ]
    path = tmp_path / name
    path.write_text("\n".join(delimiter.join(row) for row in [[], *rows]), encoding="utf-8")
    assert Glossary.load(path).entries == (
        Term("heart failure", ("HF", "cardiac insufficiency"), 2.5),
        Term("furosemide"),
        Term("oedema", ("edema",)),
        Term("ascites", ("hydroperitoneum",), 0.0),
    )


def test_a_table_without_names_of_columns_holds_terms_and_variants(tmp_path: Path):
    path = tmp_path / "terms.csv"
    path.write_text('"failure, of the heart",HF\nvitamin,12\n', encoding="utf-8")
    assert Glossary.load(path).entries == (Term("failure, of the heart", ("HF",)), Term("vitamin", ("12",)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("term,weight\nheart,much\n", r"terms\.csv, line 2: expected a number in the column 'weight', found 'much'"),
        ("term,weight\nheart,-1\n", r"terms\.csv, line 2: the weight of 'heart' must be a number from 0 on, found -1"),
        (
            "term,weight\nheart,nan\n",
            r"terms\.csv, line 2: the weight of 'heart' must be a number from 0 on, found nan",
        ),
        (",HF\n", r"terms\.csv, line 1: expected a term in the first column, found variants only: \['HF'\]"),
        ("term,variant\n", r"terms\.csv: the glossary holds no term"),
        ('term\n"heart\nlung\n', r"terms\.csv, behind line 1: expected a row of terms, found unexpected end of data"),
    ],
)
def test_a_broken_table_is_told_by_its_line(tmp_path: Path, content: str, message: str):
    path = tmp_path / "terms.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RefineError, match=message):
        Glossary.load(path)


def test_an_audit_tells_what_the_list_is_worth(vocabulary):
    glossary = Glossary(
        [
            Term("heart failure", ("HF", "the patient takes furosemide " * 8, "heart 🤒")),
            "heart",
            "failure",
            "never written",
            "龘",
            "pulmonary congestion of the patient takes furosemide for bisoprolol and hypokalaemia",
            "HF",
        ]
    )
    audit = glossary.audit(
        ["heart failure and HF", "the heart; heart failure", "no failures, 龘"], vocabulary=vocabulary
    )
    assert audit.documents == 3
    assert list(audit.counts.items())[:4] == [("heart failure", 3), ("heart", 1), ("failure", 0), ("never written", 0)]
    assert audit.counts["龘"] == 1
    assert audit.unseen == ("never written", glossary.terms[5])
    assert audit.shadowed == {"failure": ("heart failure",)}
    assert list(audit.too_long) == [glossary.entries[0].variants[1], glossary.terms[5]]
    assert audit.too_long[glossary.terms[5]] == len(vocabulary.encode(glossary.terms[5]).ids) > 24
    assert audit.uncovered["龘"] == "龘"
    assert audit.uncovered["heart 🤒"] == "🤒"
    assert "heart" not in audit.uncovered
    assert audit.repeated == ("HF",)


@given(text=texts)
def test_uncovered_characters_are_those_in_bytes(vocabulary, text):
    covered = vocabulary.uncovered(text)
    assert set(covered) <= set(text)
    pieces = vocabulary.encode("".join(char for char in text if char not in covered)).ids
    assert not any(vocabulary.decode([token]) == "\ufffd" for token in pieces.tolist())
