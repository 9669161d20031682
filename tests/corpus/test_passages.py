from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from t5refine_peft.corpus.passages import split_passages


@given(text=texts, max_tokens=st.integers(1, 30))
def test_passages_cover_the_document_within_the_budget(vocabulary, text, max_tokens):
    encoding = vocabulary.encode(text)
    passages = split_passages(text, encoding, vocabulary.words(encoding, text), max_tokens=max_tokens)
    assert [token for part in passages for token in encoding.ids[part]] == encoding.ids.tolist()
    assert all(0 < part.stop - part.start <= max_tokens for part in passages)


def test_a_passage_ends_with_a_sentence_where_it_can(vocabulary):
    text = "合同生效。" * 6
    encoding = vocabulary.encode(text)
    parts = split_passages(text, encoding, vocabulary.words(encoding, text), max_tokens=len(encoding.ids) // 2 + 2)
    assert len(parts) > 1
    assert all(vocabulary.decode(encoding.ids[part]).endswith("。") for part in parts)
