from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft import Glossary, RefineError, Restorer, load_base


@pytest.fixture(scope="module")
def restorer(tiny_base: Path) -> Restorer:
    return Restorer(load_base(tiny_base, device="cpu", precision="float32"), adapters_dir="none")


def outside(text: str, gaps) -> list[str]:
    borders = [0, *(border for gap in gaps for border in gap), len(text)]
    return [text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True)]


_HIDDEN = st.sampled_from(["", "x", "e\u0301", "😀", "<extra_id_5>", "心"])
gapped_texts = st.lists(texts, min_size=1, max_size=5).flatmap(
    lambda parts: st.tuples(st.just(parts), st.lists(_HIDDEN, min_size=len(parts) - 1, max_size=len(parts) - 1))
)
"""Parts of a text and what stands in the gaps between them; with empty parts, gaps touch or stand at an end."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=gapped_texts)
def test_all_but_the_gaps_is_untouched_and_every_gap_is_answered(restorer, case):
    parts, damaged = case
    text, ranges = parts[0], []
    for hidden, part in zip(damaged, parts[1:], strict=True):
        ranges.append((len(text), len(text) + len(hidden)))
        text += hidden + part
    restored = restorer.restore([text], gaps=[ranges], max_gap_tokens=3)[0]
    assert outside(restored.text, [(gap.start, gap.end) for gap in restored.gaps]) == parts
    assert len(restored.gaps) == len(damaged)
    for gap in restored.gaps:
        assert restored.text[gap.start : gap.end] == gap.text
        assert gap.text.strip()
        assert 0 <= gap.score <= 1


def test_bytes_that_are_no_text_come_back_as_they_were(restorer):
    raw = "caf\xe9 ".encode("latin-1") + "___ 心".encode() + b"\xff"
    restored = restorer.restore(raw.decode("utf-8", "surrogateescape"), max_gap_tokens=2)
    back = restored.text.encode("utf-8", "surrogateescape")
    assert back.startswith(b"caf\xe9 ")
    assert back.endswith(" 心".encode() + b"\xff")
    assert len(restored.gaps) == 1


def test_sentinels_that_repeat_or_are_out_of_order_are_gaps_as_they_stand(restorer):
    restored = restorer.restore("<extra_id_7>a<extra_id_0>b<extra_id_7>c<extra_id_123>", max_gap_tokens=2)
    assert [part.strip() for part in outside(restored.text, [(g.start, g.end) for g in restored.gaps])] == [
        "", "a", "b", "c", "",
    ]  # fmt: skip


def test_a_hundred_and_fifty_gaps(restorer):
    text = "心□e\u0301□😀" * 75
    restored = restorer.restore(text, max_gap_tokens=2)
    assert len(restored.gaps) == 150
    kept = outside(restored.text, [(gap.start, gap.end) for gap in restored.gaps])
    assert "".join(kept) == text.replace("□", "")


def test_a_text_without_gaps_comes_back(restorer):
    assert restorer.restore("Ｆｕｌｌ　width  and  spaces\r\n").text == "Ｆｕｌｌ　width  and  spaces\r\n"
    assert restorer.restore([]) == []


def test_literal_sentinels_are_text_where_a_mark_is_given(restorer):
    restored = restorer.restore("see <extra_id_5> and ???", gap="???")
    assert restored.text.startswith("see <extra_id_5> and ")
    assert len(restored.gaps) == 1


def test_candidates_differ_and_begin_with_the_answer(restorer):
    gap = restorer.restore("the patient ___ well", num_candidates=4, max_gap_tokens=3).gaps[0]
    assert gap.candidates[0].text == gap.text
    assert 1 < len(gap.candidates) <= 4


def test_marks_that_are_counted_are_filled_with_as_many_characters(restorer):
    restored = restorer.restore("合同□□生效，＿＿＿。the ___ of", count_marks=True, max_gap_tokens=3)
    assert [len(gap.text.strip()) for gap in restored.gaps[:2]] == [2, 3]


def test_weak_gaps_stay_open_as_they_stood(restorer):
    text = "the □□ and <extra_id_3>"
    restored = restorer.restore(text, min_score=1.0, max_gap_tokens=3)
    assert restored.text == text
    assert [(gap.text, gap.open) for gap in restored.gaps] == [("□□", True), ("<extra_id_3>", True)]
    assert restorer.restore(["ab"], gaps=[[(1, 1)]], min_score=1.0, max_gap_tokens=3)[0].text == "a___b"
    assert not any(gap.open for gap in restorer.restore(text, max_gap_tokens=3).gaps)


def test_glossaries_for_all_for_a_text_and_for_a_gap(restorer):
    heart, law = Glossary(["furosemide"]), Glossary(["撤销权"])
    texts_ = ["a ___ b", "依据___请求"]
    answers = [r.gaps[0].text for r in restorer.restore(texts_, glossary=heart)]
    assert [a.strip() for a in answers] == ["furosemide"] * 2
    answers = [r.gaps[0].text.casefold() for r in restorer.restore(texts_, glossary=[heart, law])]
    assert answers == ["furosemide", "撤销权"]
    one = restorer.restore(["a ___ b ___ c"], glossary=[[None, law]], max_gap_tokens=2)[0]
    assert one.gaps[1].text.strip() == "撤销权"
    with pytest.raises(RefineError, match="the glossary holds no term of 2 characters"):
        restorer.restore("合同□□", glossary=law, count_marks=True)
    with pytest.raises(RefineError, match="text 1 has 2 gaps: expected a glossary for each, found 1"):
        restorer.restore(["___ a ___"], glossary=[[law]])


def test_a_stream_of_any_length_is_read_bit_by_bit(restorer, monkeypatch):
    monkeypatch.setattr("t5refine_peft.restoration.restorer._TEXTS_AT_ONCE", 3)
    taken = []

    def lines():
        for number in range(10**9):
            taken.append(number)
            yield f"the patient {number}"

    stream = restorer.restore_stream(lines())
    assert [next(stream).text for _ in range(4)] == [f"the patient {number}" for number in range(4)]
    assert len(taken) <= 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 0}, "num_candidates must be a whole number from 1 on, found 0"),
        ({"num_candidates": 2.5}, "num_candidates must be a whole number from 1 on, found 2.5"),
        ({"decoding": "greedy"}, r"decoding must be Decoding.greedy\(\), .beam\(\) or .sampling\(\), found 'greedy'"),
        ({"glossary": "x"}, "expected a Glossary, or one for each text, found 'x'"),
        ({"min_score": 1.5}, "min_score must lie between 0 and 1, found 1.5"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, found 0"),
        ({"max_gap_tokens": 0}, "max_gap_tokens must be at least 1, found 0"),
        ({"adapter": ["a", "b"]}, "expected 1, found 2"),
        ({"gap": ""}, "the gap mark is empty"),
        ({"gaps": []}, "expected 1, found 0"),
        ({"gaps": [(0, 1)]}, r"a list of ranges \(start, end\) of whole numbers for each text, found \(0, 1\)"),
        ({"detect_threshold": math.nan}, "a number of nats, found nan"),
        ({"detect": True}, "the base alone has no threshold for damage"),
    ],
)
def test_options_that_can_not_be_are_refused(restorer, options, message):
    with pytest.raises(RefineError, match=message):
        restorer.restore(["a ___"], **options)


@pytest.mark.parametrize(
    ("texts", "kind"), [([None], "NoneType"), (b"a ___", "bytes"), (["a", b"b"], "bytes"), (b"", "bytes")]
)
def test_texts_that_are_none_are_refused(restorer, texts, kind):
    with pytest.raises(RefineError, match=f"texts must be strings, found {kind}"):
        restorer.restore(texts)


def test_a_glossary_gives_as_many_different_answers_as_are_asked_for(restorer):
    forms = {"aort", "aorta", "aortal", "Aort", "Aorta", "Aortal"}
    gap = restorer.restore("the ___ is", glossary=Glossary(["aort", "aorta", "aortal"]), num_candidates=5).gaps[0]
    answers = [candidate.text for candidate in gap.candidates]
    assert len(answers) == len(set(answers)) == 5
    assert set(answers) <= forms


@pytest.mark.parametrize("term", ["CO₂", "10⁻³", "½ Tablette", "№", "Ｈｅａｒｔ", "ﬁbrosis", "ß-Blocker"])
def test_a_term_is_answered_as_the_glossary_spells_it(restorer, term):
    answers = [
        c.text for c in restorer.restore("a ___ b", glossary=Glossary([term]), num_candidates=3).gaps[0].candidates
    ]
    assert term in answers
    assert {answer[1:] for answer in answers} == {term[1:]}  # but for a capital


def test_damage_that_is_found_need_be_no_term(restorer):
    text, law = "the xq heart ___ of qx", Glossary(["撤销权"])
    for glossary in (law, [law], [[law]]):
        gaps = restorer.restore([text], detect=True, detect_threshold=0.0, glossary=glossary, max_gap_tokens=2)[0].gaps
        assert {gap.text.strip() for gap in gaps if not gap.found} == {"撤销权"}
        assert len([gap for gap in gaps if gap.found]) > 1
        assert "撤销权" not in {gap.text.strip() for gap in gaps if gap.found}


def test_a_favoured_term_is_finished_beyond_the_length(restorer):
    term = "pulmonary congestion"
    gap = restorer.restore("the ___ is", glossary=Glossary([term]), glossary_bias=1e4, max_gap_tokens=2).gaps[0]
    assert gap.text.casefold() == term


def test_several_domains_in_a_batch_answer_as_each_alone_in_the_usual_precision(tiny_base, adapters):
    restorer = Restorer(load_base(tiny_base, device="cpu", precision="bfloat16"), adapters_dir=adapters)
    names = ["heart", "law", "tax", None]
    together = restorer.restore(["the ___ heart"] * 4, adapter=names, max_gap_tokens=3)
    alone = [restorer.restore("the ___ heart", adapter=name, max_gap_tokens=3) for name in names]
    assert [one.text for one in together] == [one.text for one in alone]
    scores = [one.gaps[0].score for one in together]
    assert scores == pytest.approx([one.gaps[0].score for one in alone], rel=1e-4)
    assert len({round(score, 8) for score in scores}) > 1
