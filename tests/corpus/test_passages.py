from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft import Glossary, RefineError, TrainingConfig
from t5refine_peft.corpus.passages import Passage, read_passages, split_passages, term_token_spans

GLOSSARY = Glossary(["furosemide", "heart", "心力衰竭", "合同", "x", "龘", "㍿"])


def cut(vocabulary, text: str, max_tokens: int) -> list[str]:
    """The passages of a text as text."""
    (passages,) = read_passages([text], vocabulary=vocabulary, max_tokens=max_tokens)
    return [text[passage.start : passage.end] for passage in passages]


@given(text=texts, max_tokens=st.integers(2, 30), share=st.floats(0, 0.5))
def test_passages_put_together_are_the_document_to_the_character(vocabulary, text, max_tokens, share):
    context = int((max_tokens - 1) * share)
    (passages,) = read_passages(
        [text], vocabulary=vocabulary, glossary=GLOSSARY, max_tokens=max_tokens, context_tokens=context
    )
    encoding = vocabulary.encode(text)
    if len(encoding.ids):
        assert "".join(text[passage.start : passage.end] for passage in passages) == text
        assert (passages[0].start, passages[-1].end) == (0, len(text))
    own = [token for passage in passages for token in passage.ids[passage.context_tokens :].tolist()]
    assert own == encoding.ids.tolist()
    reached = 0
    for passage in passages:
        assert len(passage.ids) < max_tokens  # the end mark
        assert 0 <= passage.context_tokens <= context
        assert len(passage.ids) == len(passage.word_starts) > passage.context_tokens
        before = encoding.ids[reached - passage.context_tokens : reached]
        assert passage.ids[: passage.context_tokens].tolist() == before.tolist()
        reached += len(passage.ids) - passage.context_tokens


@given(documents=st.lists(texts, max_size=6), max_tokens=st.integers(6, 30))
def test_many_documents_at_a_time_give_what_each_gives_alone(vocabulary, documents, max_tokens):
    def plain(passages: list[Passage]) -> list[tuple]:
        return [
            (p.ids.tolist(), p.word_starts.tolist(), p.term_spans.tolist(), p.context_tokens, p.start, p.end)
            for p in passages
        ]

    options = {"vocabulary": vocabulary, "glossary": GLOSSARY, "max_tokens": max_tokens, "context_tokens": 2}
    together = read_passages(documents, **options)
    assert [plain(one) for one in together] == [plain(read_passages([text], **options)[0]) for text in documents]


@given(text=texts)
def test_the_tokens_of_a_term_hold_all_its_characters_and_whole_pieces_only(vocabulary, text):
    encoding = vocabulary.encode(text)
    spans = term_token_spans(text, encoding, GLOSSARY, vocabulary)
    matches = GLOSSARY.find(text)
    assert len(spans) == len(matches)
    for (first, last, number), match in zip(spans.tolist(), matches, strict=True):
        assert number == match.term
        meets = (encoding.starts < match.end) & (encoding.ends > match.start)
        inside = np.zeros(len(meets), dtype=bool)
        inside[first:last] = True
        assert (inside | ~meets).all()
        marks = vocabulary.is_word_mark(encoding.ids)
        assert (meets | ~inside | marks).all()


def test_a_term_spelled_in_bytes_is_covered_from_its_first_byte(vocabulary):
    encoding = vocabulary.encode("a龘b")
    assert term_token_spans("a龘b", encoding, GLOSSARY, vocabulary).tolist() == [[1, 4, 5]]
    assert vocabulary.decode(encoding.ids[1:4]) == "龘"


def test_a_word_mark_of_its_own_belongs_to_the_term_behind_it(vocabulary):
    text = "the 合同"
    encoding = vocabulary.encode(text)
    ((first, last, _),) = term_token_spans(text, encoding, GLOSSARY, vocabulary).tolist()
    assert vocabulary.decode(encoding.ids[first:last]) == " 合同"


def test_a_passage_ends_with_a_sentence_where_it_can(vocabulary):
    text = "合同生效。" * 6
    half = len(vocabulary.encode(text).ids) // 2
    assert cut(vocabulary, text, half + 3) == ["合同生效。" * 3] * 2


@pytest.mark.parametrize(
    ("text", "max_tokens", "first"),
    [
        ("The heart stops. The patient takes furosemide and rests.", 22, "The heart stops."),
        ("The heart stops! the patient takes furosemide and rests.", 22, "The heart stops!"),
        ("The heart\n\nThe patient takes furosemide and rests.", 22, "The heart"),
        ("合同生效，当事人应当依据合同约定", 12, "合同生效，"),
        ("The patient, takes furosemide for congestion", 14, "The patient,"),
    ],
)
def test_the_best_place_for_a_cut_is_taken(vocabulary, text, max_tokens, first):
    assert cut(vocabulary, text, max_tokens)[0] == first


def test_an_abbreviation_ends_no_sentence(vocabulary):
    text = "It rests. See e.g. furosemide of A. Heart for the patient and the doctor and the pulse of the patient"
    assert cut(vocabulary, text, len(vocabulary.encode(text).ids))[0] == "It rests."


def test_no_cut_goes_through_a_term(vocabulary):
    text = "the patient of the heart failure of the heart failure of the heart failure"
    glossary = Glossary(["heart failure"])
    for max_tokens in range(16, 40):
        (passages,) = read_passages([text], vocabulary=vocabulary, glossary=glossary, max_tokens=max_tokens)
        assert sum(len(passage.term_spans) for passage in passages) == 3


def test_a_short_remainder_takes_half_of_the_passage_before(vocabulary):
    text = "合同，" * 45
    encoding = vocabulary.encode(text)
    size = len(encoding.ids) - 2
    parts = split_passages(text, encoding, vocabulary.words(encoding, text), max_tokens=size)
    assert len(parts) == 2
    assert min(part.stop - part.start for part in parts) > size // 3


def test_context_is_whole_words_of_the_passage_before(vocabulary):
    text = "The patient takes furosemide for pulmonary congestion. The heart is treated with bisoprolol."
    (passages,) = read_passages([text], vocabulary=vocabulary, glossary=GLOSSARY, max_tokens=40, context_tokens=12)
    assert len(passages) > 1
    for before, passage in pairwise(passages):
        context = vocabulary.decode(passage.ids[: passage.context_tokens])
        assert context
        assert vocabulary.decode(before.ids).endswith(context)
        assert text[: passage.start].endswith(context)
        assert context.startswith(" ")
        for first, last, number in passage.term_spans.tolist():
            assert vocabulary.decode(passage.ids[first:last]).strip() == GLOSSARY.terms[number]


@pytest.mark.parametrize(("max_tokens", "context_tokens"), [(1, 0), (10, 5), (10, -1)])
def test_a_budget_without_room_is_refused(vocabulary, max_tokens, context_tokens):
    with pytest.raises(RefineError, match=f"found {max_tokens} tokens with {context_tokens} of context"):
        read_passages(["x y"], vocabulary=vocabulary, max_tokens=max_tokens, context_tokens=context_tokens)
    with pytest.raises(RefineError, match="context_tokens must be at least 0 and below half of max_passage_tokens"):
        TrainingConfig(context_tokens=max(context_tokens, 5), max_passage_tokens=10)
