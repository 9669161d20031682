from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from t5refine_peft import RefineError
from t5refine_peft.corpus.reading import read_documents


def texts_of(corpus, **options) -> list[str]:
    return [document.text for document in read_documents(corpus, **options)]


def test_a_folder_of_every_kind(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\r\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("# three\nfour", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "five"}\n\n{"text": "six"}\n', encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.csv").write_text('id,text\n1,"sev,en"\n', encoding="utf-8")
    assert texts_of(tmp_path) == ["one", "two", "# three\nfour", "five", "six", "sev,en"]


def test_a_file_as_one_document(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\ntwo", encoding="utf-8")
    assert texts_of(tmp_path / "a.txt", unit="file") == ["one\ntwo"]


def test_iterables_of_texts_rows_and_datasets():
    assert texts_of(["a", " ", "b"]) == ["a", "b"]
    assert texts_of(datasets.Dataset.from_list([{"body": "c"}]), field="body") == ["c"]


def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(RefineError, match=r"a\.jsonl, line 2: expected a JSON object"):
        texts_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', "line 1: expected text in the field 'text', found the fields"),
        ("a.jsonl", b"[1]\n", "line 1: expected an object with the field 'text', found list"),
        ("a.csv", b"id\n1\n", "expected text in the field 'text'"),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8: byte 0"),
        ("a.jsonl", b'{"text": "a \\ud800"}\n', "a.jsonl:1: character 2 is half a surrogate pair"),
        ("a.csv", b"text\n" + b"x" * 200_000, "behind line 1: expected a row of CSV, found field larger"),
        ("a.txt", b" \n", "is empty"),
        ("a.xyz", b"x", "expected a file that ends in"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RefineError, match=message):
        texts_of(tmp_path / name)


def test_missing_paths_and_empty_folders(tmp_path: Path):
    with pytest.raises(RefineError, match="does not exist"):
        texts_of(tmp_path / "none.txt")
    with pytest.raises(RefineError, match="holds no text"):
        texts_of(tmp_path)
    with pytest.raises(RefineError, match="the corpus is empty"):
        texts_of([])
