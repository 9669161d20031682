from __future__ import annotations

import pytest

from t5refine_peft import Glossary, RefineError, prepare_dataset


def test_splits_by_document_and_one_more_document_moves_no_other(vocabulary, corpus, terms):
    def split_of(documents):
        splits = prepare_dataset(
            documents, vocabulary=vocabulary, glossary=Glossary(terms), validation_share=0.2, test_share=0.2
        )
        return {tuple(ids): name for name, rows in splits.items() for ids in rows["ids"]}

    before, after = split_of(corpus), split_of([*corpus, "one more document on the heart failure"])
    assert set(before.values()) == {"train", "validation", "test"}
    assert {ids: after[ids] for ids in before} == before


def test_rows_hold_ids_words_and_whole_terms(vocabulary, terms):
    texts = [f"{n}: the loop diuretic furosemide 的标的物" for n in range(30)]
    splits = prepare_dataset(
        texts, vocabulary=vocabulary, glossary=Glossary(terms), validation_share=0.3, test_share=0.3
    )
    for rows in splits.values():
        for row in rows:
            assert row["length"] == len(row["ids"]) == len(row["word_starts"])
            found = [vocabulary.decode(row["ids"][start:end]).strip() for start, end, _ in row["term_spans"]]
            assert [any(term in piece for piece in found) for term in ("loop diuretic", "furosemide", "标的物")] == [
                True
            ] * 3


def test_a_glossary_of_another_domain_is_refused(vocabulary, corpus):
    with pytest.raises(RefineError, match="none of the 1 terms occurs in the corpus"):
        prepare_dataset(corpus, vocabulary=vocabulary, glossary=Glossary(["zzzz"]))


def test_too_few_documents_are_refused(vocabulary):
    with pytest.raises(RefineError, match="the corpus has 1 documents, too few to split"):
        prepare_dataset(["the patient takes furosemide"], vocabulary=vocabulary)
