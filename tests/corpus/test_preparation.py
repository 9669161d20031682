from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import datasets
import pytest

from t5refine_peft import Glossary, RefineError, prepare_dataset
from t5refine_peft.corpus import preparation, spool
from t5refine_peft.corpus.preparation import prepare_corpus, prepare_rows
from t5refine_peft.corpus.prepared import load_prepared
from t5refine_peft.corpus.rows import smallest_integer

WORDS = [
    "furosemide",
    "heart failure",
    "loop diuretic",
    "合同",
    "买受人",
    "撤销权",
    "the",
    "patient",
    "takes",
    "for",
    "依据",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three files with 240 documents, of which 10 are equal to others."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=30)) + "." for _ in range(230)]
    texts = [*texts[:150], *texts[:10], *texts[150:]]
    (tmp_path / "texts").mkdir()
    for number in range(3):
        part = texts[number * 80 : number * 80 + 80]
        (tmp_path / "texts" / f"{number}.txt").write_text("\n".join(part), encoding="utf-8")
    return tmp_path / "texts"


def content(prepared: datasets.DatasetDict) -> dict[str, list[dict[str, object]]]:
    return {split: rows.to_list() for split, rows in prepared.items()}


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
        texts,
        vocabulary=vocabulary,
        glossary=Glossary(terms),
        validation_share=0.3,
        test_share=0.3,
        keep_near_duplicates=True,
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


def test_the_dataset_is_what_each_split_gives_by_itself(vocabulary, terms, folder, tmp_path):
    prepared = prepare_corpus(
        folder, vocabulary=vocabulary, glossary=Glossary(terms), max_tokens=40, cache_dir=tmp_path / "cache"
    )
    lines = {f"{file}:{n}": line for file in folder.iterdir() for n, line in enumerate(file.open(), start=1)}
    summary = prepared.summary
    for split, rows in prepared.splits.items():
        sources = list(dict.fromkeys(rows["document"]))
        alone = prepare_rows(
            [lines[source].strip() for source in sources],
            vocabulary=vocabulary,
            glossary=Glossary(terms),
            max_tokens=40,
        )
        assert alone.remove_columns("document").to_list() == rows.remove_columns("document").to_list()
        assert summary.passages[split] == len(rows) > 0
        assert summary.tokens[split] == sum(rows["length"])
        assert summary.documents[split] == len(sources)
        assert summary.term_occurrences[split] == sum(map(len, rows["term_spans"]))
    assert sum(summary.term_counts.values()) == sum(summary.term_occurrences.values())
    assert summary.term_counts["furosemide"] == sum(
        Glossary(terms).terms[term] == "furosemide"
        for rows in prepared.splits.values()
        for spans in rows["term_spans"]
        for _, _, term in spans
    )
    assert summary.duplicates == 10
    assert sum(summary.documents.values()) == 230 - summary.near_duplicates - summary.without_passage


def test_a_second_call_opens_what_is_there(vocabulary, terms, folder, tmp_path, monkeypatch):
    options = {"vocabulary": vocabulary, "cache_dir": tmp_path / "cache"}
    first = prepare_corpus(folder, glossary=Glossary(terms), **options)
    monkeypatch.setattr(spool, "read_documents", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr(preparation.RowBuilder, "rows", lambda *_: pytest.fail("tokenised again"))
    second = prepare_corpus(folder, glossary=Glossary(list(terms)), **options)
    assert second.directory == first.directory
    assert second.summary == first.summary
    assert content(second.splits) == content(first.splits)


def test_what_the_dataset_depends_on_makes_another(vocabulary, terms, folder, tmp_path):
    options = {"vocabulary": vocabulary, "glossary": Glossary(terms), "cache_dir": tmp_path / "cache"}
    made = [prepare_corpus(folder, **{**options, **change}).directory for change in (
        {}, {"max_tokens": 32}, {"seed": 1}, {"glossary": None}, {"test_share": 0.2}, {"keep_near_duplicates": True},
        {"unit": "line"}, {"processes": 2},
    )]  # fmt: skip
    assert made[-1] == made[0]
    assert len(set(made)) == len(made) - 1
    (folder / "0.txt").write_text("another text of the heart failure\n" + (folder / "0.txt").read_text())
    assert prepare_corpus(folder, **options).directory not in made


@pytest.mark.parametrize("processes", [1, 2])
def test_documents_interrupted_are_taken_up_where_they_stopped(
    vocabulary, terms, folder, tmp_path, monkeypatch, processes: int
):
    options = {"vocabulary": vocabulary, "glossary": Glossary(terms), "processes": processes}
    whole = prepare_corpus(folder, cache_dir=tmp_path / "whole", **options)
    monkeypatch.setattr(spool, "_PART_CHARACTERS", 3000)
    chunks = spool.in_chunks

    def six_chunks(documents, **options):
        yield from itertools.islice(chunks(documents, **options), 6)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spool, "in_chunks", six_chunks)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(folder, cache_dir=tmp_path / "cut", **options)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob(".documents-*/part-*.arrow")}
    assert 1 <= len(written) <= 6
    resumed = prepare_corpus(folder, cache_dir=tmp_path / "cut", **options)
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("documents-*/part-*.arrow")}
    assert len(parts) > 6
    assert written.items() <= parts.items()
    assert content(resumed.splits) == content(whole.splits)
    assert not list((tmp_path / "cut").glob(".*.unfinished"))


def test_passages_interrupted_are_taken_up_where_they_stopped(vocabulary, terms, folder, tmp_path, monkeypatch):
    options = {"vocabulary": vocabulary, "glossary": Glossary(terms), "cache_dir": tmp_path / "cut"}
    monkeypatch.setattr(spool, "_PART_CHARACTERS", 3000)
    original = preparation.part_documents

    def four_parts(part):
        if part.stem == "part-00004":
            raise KeyboardInterrupt
        return original(part)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "part_documents", four_parts)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(folder, **options)
    assert len(list((tmp_path / "cut").glob(".passages-*/part-*.json"))) == 4
    tokenised: list[str] = []
    monkeypatch.setattr(preparation, "part_documents", lambda part: (tokenised.append(part.stem), original(part))[1])
    resumed = prepare_corpus(folder, **options)
    assert tokenised[0] == "part-00004"
    assert len(tokenised) > 4
    whole = prepare_corpus(folder, **{**options, "cache_dir": tmp_path / "whole"})
    assert content(resumed.splits) == content(whole.splits)
    assert resumed.summary == whole.summary
    assert not list((tmp_path / "cut").glob(".*.unfinished"))


def test_the_directory_is_one_that_datasets_reads_and_can_be_saved_elsewhere(vocabulary, terms, folder, tmp_path):
    prepared = prepare_corpus(folder, vocabulary=vocabulary, glossary=Glossary(terms), cache_dir=tmp_path / "cache")
    plain = datasets.load_from_disk(str(prepared.directory))
    assert content(plain) == content(prepared.splits)
    assert plain["train"].features["ids"].feature.dtype == "uint16"
    assert plain["train"].map(lambda row: {"n": row["length"]})["n"][:] == plain["train"]["length"][:]
    prepared.save(tmp_path / "mine")
    prepared.save(tmp_path / "mine")
    assert content(load_prepared(tmp_path / "mine").splits) == content(prepared.splits)
    assert load_prepared(tmp_path / "mine").summary == prepared.summary
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    with pytest.raises(RefineError, match="is there already and is no prepared dataset"):
        prepared.save(tmp_path / "other")
    (tmp_path / "mine" / "prepared.json").write_text("{")
    with pytest.raises(RefineError, match="is no whole prepared dataset"):
        load_prepared(tmp_path / "mine")


@pytest.mark.parametrize(("count", "name"), [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "int32")])
def test_the_smallest_integer_holds_the_largest_id(count: int, name: str):
    assert smallest_integer(count) == name


def test_near_duplicates_leave_the_training_split_and_the_test_stays(vocabulary, folder, tmp_path):
    options = {"vocabulary": vocabulary, "cache_dir": tmp_path / "cache", "test_share": 0.2}
    before = prepare_corpus(folder, **options)
    lines = {f"{file}:{n}": line for file in folder.iterdir() for n, line in enumerate(file.open(), start=1)}
    near = [lines[source].strip() + " oedema" for source in sorted(set(before.splits["test"]["document"]))]
    (folder / "9.txt").write_text("\n".join(near), encoding="utf-8")
    after, kept = (prepare_corpus(folder, keep_near_duplicates=keep, **options) for keep in (False, True))
    added = {f"{folder / '9.txt'}:{n}" for n in range(1, len(near) + 1)}
    assert added & set(kept.splits["train"]["document"])
    assert not added & set(after.splits["train"]["document"])
    assert after.summary.near_duplicates > len(near) * 0.5
    assert set(before.splits["test"]["document"]) <= set(after.splits["test"]["document"])


PAIR = {"inputs": "Case {}: the patient takes <extra_id_0> for oedema.", "targets": "<extra_id_0> furosemide {}"}


def pairs(numbers: range) -> str:
    rows = [{name: text.format(f"{n} {n * n}") for name, text in PAIR.items()} for n in numbers]
    return "\n".join(map(json.dumps, rows))


def test_pairs_keep_the_splits_that_their_files_name(vocabulary, terms, tmp_path):
    (tmp_path / "train.jsonl").write_text(pairs(range(100, 160)))
    (tmp_path / "valid.jsonl").write_text(pairs(range(900, 920)))
    files = [tmp_path / "train.jsonl", tmp_path / "valid.jsonl"]
    prepared = prepare_corpus(
        files, vocabulary=vocabulary, glossary=Glossary(terms), cache_dir=tmp_path / "cache", keep_near_duplicates=True
    )
    names = {split: {Path(source).name.split(":")[0] for source in rows["document"]}
             for split, rows in prepared.splits.items()}  # fmt: skip
    assert names == {"train": {"train.jsonl"}, "validation": {"valid.jsonl"}, "test": {"valid.jsonl"}}
    assert sum(map(len, prepared.splits.values())) == 80
    row = prepared.splits["train"][0]
    ((start, end),) = row["masked"]
    assert vocabulary.decode(row["ids"][start:end]).strip() == "furosemide 100 10000"
    ((first, last, term),) = row["term_spans"]
    assert start == first < last < end
    assert Glossary(terms).terms[term] == "furosemide"

    long = {"inputs": "The patient takes <extra_id_0>. " + "Oedema went. " * 200, "targets": "<extra_id_0> it"}
    late = {"inputs": "The patient takes <extra_id_0>.", "targets": "<extra_id_0>" + " furosemide" * 300}
    (tmp_path / "test.jsonl").write_text("\n".join([pairs(range(500, 510)), json.dumps(long), json.dumps(late)]))
    three = prepare_corpus(
        [*files, tmp_path / "test.jsonl"],
        vocabulary=vocabulary,
        cache_dir=tmp_path / "cache",
        keep_near_duplicates=True,
    )
    assert {split: len(rows) for split, rows in three.splits.items()} == {"train": 60, "validation": 20, "test": 10}
    assert three.summary.notices() == [
        "2 pairs have more than 512 tokens of inputs or 256 of targets: left out",
    ]


def test_a_folder_with_files_of_other_kinds_is_prepared(vocabulary, folder, tmp_path):
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "scan.png").write_bytes(b"\0")
    prepared = prepare_corpus(folder, vocabulary=vocabulary, cache_dir=tmp_path / "cache")
    assert "files of other kinds were passed over: 1 without suffix, 1 .png" in prepared.summary.notices()
