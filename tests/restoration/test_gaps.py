from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from strategies import texts

from t5refine_peft import RefineError
from t5refine_peft.restoration.gaps import Gap, check_ranges, counted_characters, find_gaps
from t5refine_peft.restoration.spacing import fit
from t5refine_peft.restoration.windows import make_windows


@pytest.mark.parametrize(
    "mark", ["<extra_id_0>", "<extra_id_17>", "[MASK]", "___", "______", "＿＿", "□", "□□□", "{gap}"]
)
def test_the_usual_marks(mark: str):
    assert find_gaps(f"a {mark} b{mark}") == [Gap(2, 2 + len(mark)), Gap(4 + len(mark), 4 + 2 * len(mark))]


def test_a_mark_of_ones_own_is_the_only_one():
    assert find_gaps("a ??? b ___ <extra_id_0>", mark="???") == [Gap(2, 5)]


def test_two_underscores_are_text():
    assert find_gaps("snake__case_") == []


def test_a_sentinel_has_plain_digits():
    assert find_gaps("<extra_id_٣><extra_id_><extra_id_-1>") == []


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("a □□ b＿＿＿", [2, 3]), ("___ [MASK] <extra_id_0> {gap}", [None] * 4)],
)
def test_marks_that_are_counted(text, lengths):
    assert [counted_characters(text, gap) for gap in find_gaps(text)] == lengths
    assert counted_characters("abc", Gap(1, 3)) == 2
    assert counted_characters("abc", Gap(1, 1)) is None


@pytest.mark.parametrize(
    "ranges", [[(3, 2)], [(0, 9)], [(2, 4), (3, 5)], [(-1, 1)], (0, 3), [(0, 1, 2)], [(0.0, 1.0)], None]
)
def test_bad_ranges_are_refused(ranges):
    with pytest.raises(RefineError, match=r"gaps must be (ranges|a list of ranges) \(start, end\)"):
        check_ranges("abcdef", ranges)


def test_sentinels_stand_where_training_puts_them(vocabulary):
    """The ids around a gap are those of one encoding of the whole text with the term's tokens replaced."""
    for text, term in [
        ("The patient takes furosemide for pulmonary congestion.", "furosemide"),
        ("当事人依据撤销权请求法院", "撤销权"),
    ]:
        whole = vocabulary.encode(text)
        start = text.index(term)
        hidden = [
            n
            for n, (s, e) in enumerate(zip(whole.starts, whole.ends, strict=True))
            if e > start and s < start + len(term)
        ]
        trained = [*whole.ids[: hidden[0]], vocabulary.sentinel_ids[0], *whole.ids[hidden[-1] + 1 :], vocabulary.eos_id]
        (window,) = make_windows(text, [Gap(start, start + len(term))], vocabulary, max_tokens=512)
        assert window.input_ids.tolist() == list(map(int, trained))


@given(text=texts)
def test_windows_answer_every_gap_once_within_the_budget(vocabulary, text):
    gaps = [Gap(at, at) for at in range(0, len(text), 3)]
    windows = make_windows(text, gaps, vocabulary, max_tokens=64)
    assert [number for window in windows for number in window.gaps] == list(range(len(gaps)))
    for window in windows:
        sentinels = [token for token in window.input_ids.tolist() if token in vocabulary.sentinel_ids]
        assert sentinels == list(vocabulary.sentinel_ids[: len(window.covered)])
        assert len(window.input_ids) <= 64
        assert window.input_ids[-1] == vocabulary.eos_id


def test_more_gaps_than_sentinels_and_a_long_text(vocabulary):
    text = "the patient ___ " * 250
    gaps = find_gaps(text)
    windows = make_windows(text, gaps, vocabulary, max_tokens=512)
    assert sum(len(window.gaps) for window in windows) == 250
    assert max(len(window.covered) for window in windows) <= 100
    assert np.max([len(window.input_ids) for window in windows]) <= 512


@pytest.mark.parametrize(
    ("filling", "before", "after", "expected"),
    [
        (" furosemide", "takes ", " for", "furosemide"),
        (" furosemide", "takes", " for", " furosemide"),
        (" furosemide", "takes", "for", " furosemide "),
        (" furosemide", "(", ")", "furosemide"),
        ("mide", "furose", ".", "mide"),
        ("sem", "furo", "ide", "sem"),
        ("撤销权", "依据", "请求", "撤销权"),
        (" 撤销权", "依据", "请求", "撤销权"),
        (" ACE", "使用", "抑制剂", "ACE"),
        (" a  b ", "", "", "a b"),
        (" furosemide", "\ufeff", " for", "furosemide"),
        (" Herz", "„", "“", "Herz"),
        (" cœur", "«", "»", "cœur"),
        (" heart", '"', '"', "heart"),
        (" 5", "$", " a day", "5"),
        (" کتاب", "\u200c", " ", "کتاب"),
        (" हिन्दी", "यह ", "भाषा", "हिन्दी "),
        ("té", "santé".replace("é", "e\u0301"), "s", "té"),
        ("e\u0301t", "caf", "\u0301", "e\u0301t"),
        (" ، او", "word", " ", "، او"),
    ],
)
def test_a_filling_is_spaced_as_its_script_needs(filling, before, after, expected):
    assert fit(filling, before, after) == expected
