from __future__ import annotations

from pathlib import Path

import pytest

from t5refine_peft import Glossary, RefineError
from t5refine_peft.demo.generator import Subject
from t5refine_peft.demo.texts import (
    DOMAINS,
    export_texts,
    held_out_documents,
    load_domain,
    training_documents,
    validation_documents,
)

EVERYDAY = Path(__file__).parents[2] / "benchmarks" / "everyday"


@pytest.mark.parametrize("name", DOMAINS)
def test_a_demo_domain_has_terms_and_documents_enough(name: str):
    domain = load_domain(name)
    documents = training_documents(domain)
    assert len(domain.terms()) >= 120
    assert len(documents) >= 400
    seen = Glossary(domain.terms()).find("\n".join(documents))
    assert len({match.term for match in seen}) >= 120
    assert documents == training_documents(domain)


@pytest.mark.parametrize("name", DOMAINS)
def test_held_out_documents_say_known_facts_in_new_words(name: str):
    domain = load_domain(name)
    known = "\n".join(training_documents(domain))
    held_out, validation = held_out_documents(domain), validation_documents(domain)
    assert not set(held_out) & set(validation)
    for document in held_out + validation:
        assert document not in known
    for table in domain.tables:
        assert table.test_sentences
        assert not set(table.sentences) & set(table.test_sentences)


def test_the_domains_are_written_as_a_users_own_files(tmp_path: Path):
    export_texts(tmp_path / "sample")
    for name in DOMAINS:
        domain, folder = load_domain(name), tmp_path / "sample" / name
        lines = {path.name: path.read_text(encoding="utf-8").splitlines() for path in folder.iterdir()}
        assert lines["texts.txt"] == training_documents(domain)
        assert lines["terms.txt"] == domain.terms()
        terms = set(domain.terms())
        for damaged, whole in zip(lines["damaged.txt"], lines["whole.txt"], strict=True):
            before, after = damaged.split("____")
            taken = whole[len(before) : len(whole) - len(after)]
            assert {taken, taken.lower()} & terms
            assert before + taken + after == whole
        assert len(lines["damaged.txt"]) == 20
    with pytest.raises(RefineError, match="sample is there already"):
        export_texts(tmp_path / "sample")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_twelve_everyday_subjects_none_of_them_a_demo_domain(language: str):
    subjects = [Subject.load(path) for path in EVERYDAY.glob(f"{language}/*.toml")]
    assert len(subjects) >= 12
    assert not {subject.name for subject in subjects} & set(DOMAINS)
    for subject in subjects:
        train, test = (list(subject.documents(30, split=split, seed=0)) for split in ("train", "test"))
        assert len(train) == len(test) == 30
        assert not any("{" in text for text in train + test)


def test_a_reserved_pair_of_row_and_sentence_is_never_trained_on():
    subject = Subject.load(next(EVERYDAY.glob("en/*.toml")))
    for table in subject.tables:
        for row in range(len(table.rows)):
            assert not set(table.sentences_for(row, "train")) & set(table.sentences_for(row, "test"))


@pytest.mark.parametrize(
    ("rows", "sentence", "message"),
    [("a", "{x} is {y}.", "has 1 cells, expected 2"), ("a | b", "{z}.", "must name columns")],
)
def test_a_faulty_table_is_refused(tmp_path: Path, rows: str, sentence: str, message: str):
    path = tmp_path / "bad.toml"
    path.write_text(f'language = "en"\n[[table]]\ncolumns = "x | y"\nrows = "{rows}"\nsentences = "{sentence}"\n')
    with pytest.raises(RefineError, match=message):
        Subject.load(path)
