from __future__ import annotations

import json
import random
import sys
import zipfile
from pathlib import Path

import datasets
import docx
import pytest

from t5refine_peft import RefineError
from t5refine_peft.corpus.documents import ReadingReport
from t5refine_peft.corpus.reading import read_documents


def pdf(text: str) -> bytes:
    """A page with a line of text, by the letter of the PDF reference."""
    content = f"BT /F 12 Tf 20 200 Td ({text}) Tj ET"
    objects = [
        "<</Type /Catalog /Pages 2 0 R>>",
        "<</Type /Pages /Kids [3 0 R] /Count 1>>",
        "<</Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents 4 0 R /Resources <</Font <</F 5 0 R>>>>>>",
        f"<</Length {len(content)}>> stream\n{content}\nendstream",
        "<</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>",
    ]
    file, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(f"{len(file):010d} 00000 n \n")
        file += f"{number} 0 obj {body} endobj\n".encode()
    table = f"xref\n0 6\n0000000000 65535 f \n{''.join(places)}"
    return file + f"{table}trailer <</Size 6 /Root 1 0 R>>\nstartxref\n{len(file)}\n%%EOF".encode()


SENTENCES = {
    "gb18030": "患者因心力衰竭服用呋塞米，医生每天检查血压和脉搏。㐀",
    "big5": "病人因心臟衰竭服用利尿劑，契約由雙方當事人合意而成立。",
    "shift_jis": "患者は心不全のためフロセミドを服用している。売主は目的物を引き渡す義務を負う。",
    "latin_1": "Der Kläger trägt die Kosten des Verfahrens; la insuficiencia cardíaca del señor Núñez.",
    "utf-16": "The patient takes furosemide, 患者",
    "utf-32": "The patient takes furosemide, 患者",
}


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


def test_a_run_of_paragraphs_as_a_document(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\n one\r\ntwo\r\n \r\n\r\nthree\n")
    documents = list(read_documents(tmp_path / "a.txt", unit="paragraphs"))
    assert [document.text for document in documents] == [" one\ntwo", "three"]
    assert [document.source.rpartition(":")[2] for document in documents] == ["2", "6"]


def test_a_markdown_file_line_by_line_where_asked(tmp_path: Path):
    (tmp_path / "a.md").write_text("# one\ntwo\n", encoding="utf-8")
    assert texts_of(tmp_path, unit="line") == ["# one", "two"]


@pytest.mark.parametrize("encoding", SENTENCES)
@pytest.mark.parametrize("size", [1, 40_000])
def test_other_encodings_are_found_and_reported(tmp_path: Path, encoding: str, size: int):
    text = "\n".join([SENTENCES[encoding] * 3] * size)[:400_000]
    text = "Title\n" * 3 + text  # UTF-8 at the beginning
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    report = ReadingReport()
    assert texts_of(tmp_path / "a.txt", unit="file", report=report) == [text]
    ((path, found),) = report.encodings.items()
    assert path.endswith("a.txt")
    assert found in {encoding, {"latin_1": "cp1252", "shift_jis": "cp932"}.get(encoding)}
    assert report.messages() == [f"{path} is not UTF-8: read as {found}"]


def test_full_width_quotation_marks_do_not_hide_an_encoding(tmp_path: Path):
    text = "“心衰”、“房颤”、“早搏”、“胸闷”、“气短”、“水肿”，医生常说：“先查因，再用药。”病人问：“要住院吗？”"
    (tmp_path / "a.txt").write_bytes(text.encode("gb18030"))
    (tmp_path / "b.txt").write_bytes(random.Random(0).randbytes(400).replace(b"\0", b"x"))
    report = ReadingReport()
    assert texts_of(tmp_path / "a.txt", report=report) == [text]
    assert list(report.encodings.values()) == ["gb18030"]
    with pytest.raises(RefineError, match="nor in another encoding"):
        texts_of(tmp_path / "b.txt")


def test_a_long_utf8_file_is_not_taken_for_another(tmp_path: Path):
    text = "患者因心力衰竭服用呋塞米。" * 100_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    report = ReadingReport()
    assert texts_of(tmp_path / "a.txt", report=report) == [text]
    assert not report.messages()


def test_word_and_pdf(tmp_path: Path):
    document = docx.Document()
    document.add_paragraph("Heart failure")
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "furosemide", "40 mg"
    document.add_paragraph("患者")
    document.save(tmp_path / "a.docx")
    (tmp_path / "b.pdf").write_bytes(pdf("Heart failure is treated"))
    assert texts_of(tmp_path) == ["Heart failure\nfurosemide\t40 mg\n患者\n", "Heart failure is treated\n\n"]
    assert texts_of(tmp_path / "a.docx", unit="line") == ["Heart failure", "furosemide\t40 mg", "患者"]


@pytest.mark.parametrize(("name", "package"), [("a.docx", "docx"), ("a.pdf", "pypdf")])
def test_a_missing_reader_is_named_with_its_remedy(tmp_path: Path, monkeypatch, name: str, package: str):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RefineError, match=r"needs the extra 'documents'.*pip install .t5refine-peft\[documents\]"):
        texts_of(tmp_path)


def test_what_was_passed_over_is_reported(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text(" ")
    (tmp_path / "c.png").write_bytes(b"x")
    report = ReadingReport()
    assert texts_of(tmp_path, report=report) == ["one"]
    assert report.files == 2
    gave_none, passed_over = report.messages()
    assert gave_none.startswith(str(tmp_path / "b.txt"))
    assert passed_over == "files of other kinds were passed over: 1 .png"
    assert ReadingReport.from_json(report.to_json()) == report


def test_a_str_in_a_list_is_a_path_where_it_names_a_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    assert texts_of([str(tmp_path / "a.txt"), tmp_path / "a.txt"]) == ["one", "two"] * 2
    assert texts_of([str(tmp_path)]) == ["one", "two"]
    assert texts_of(["The patient takes furosemide.", "a/b " * 500]) == ["The patient takes furosemide.", "a/b " * 500]
    with pytest.raises(RefineError, match=r"lost\.txt does not exist"):
        texts_of([str(tmp_path / "lost.txt")])


def test_written_pairs_become_whole_texts_with_their_masks(tmp_path: Path):
    rows = [
        {"inputs": "takes <extra_id_0> for <extra_id_1>.", "targets": "<extra_id_0> furosemide <extra_id_1> oedema"},
        {"inputs": "心力<extra_id_0>", "targets": "<extra_id_0>衰竭<extra_id_1>"},
        {"inputs": "a <extra_id_1>", "targets": "<extra_id_1> b"},
        {"inputs": "a <extra_id_0>", "targets": "<extra_id_0> b <extra_id_1> c"},
        {"inputs": "a", "targets": "b"},
    ]
    (tmp_path / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = ReadingReport()
    first, second = read_documents(tmp_path / "valid.jsonl", report=report)
    assert (first.text, first.masked) == ("takes  furosemide  for  oedema.", ((6, 18), (23, 30)))
    assert (second.text, second.masked, second.split) == ("心力衰竭", ((2, 4),), "validation")
    assert report.unusable_pairs == 3
    assert "line 3: expected the inputs' sentinels to count up from 0, found 1" in report.messages()[0]
    assert next(iter(read_documents(datasets.Dataset.from_list(rows[:1])))).masked == first.masked


def test_a_field_of_a_table_may_be_a_long_document(tmp_path: Path):
    (tmp_path / "a.csv").write_text(f"id,text\n1,{'word ' * 40_000}\n")
    assert texts_of(tmp_path) == ["word " * 40_000]


@pytest.mark.parametrize("part", ["word/document.xml", "[Content_Types].xml", "word/_rels/document.xml.rels"])
def test_a_damaged_word_document_gets_one_sentence(tmp_path: Path, part: str):
    docx.Document().save(tmp_path / "whole.docx")
    with zipfile.ZipFile(tmp_path / "whole.docx") as whole, zipfile.ZipFile(tmp_path / "a.docx", "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, whole.read(name)[: 60 if name == part else None])
    with pytest.raises(RefineError, match=r"a\.docx can't be read as a Word document"):
        texts_of(tmp_path / "a.docx")


def test_a_word_document_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path):
    docx.Document().save(tmp_path / "a.docx")
    with zipfile.ZipFile(tmp_path / "a.docx", "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/media/bomb", bytes(65 << 20))
    with pytest.raises(RefineError, match=r"a\.docx can't be read as a Word document \([\d,]+ bytes that would fill"):
        texts_of(tmp_path / "a.docx")


@pytest.mark.parametrize(
    ("corpus", "found"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "a"}])), "DatasetDict of train; take one"),
        ({"text": ["a"]}, "dict of text; take one"),
        (b"a", "bytes"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_corpus_is_refused(corpus, found: str):
    with pytest.raises(RefineError, match=f"expected a path, or an iterable of texts, rows or paths, found {found}"):
        texts_of(corpus)


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
        ("a.jsonl", b'{"body": "x"}\n', "line 1: expected text in the field 'text', or in"),
        ("a.jsonl", b"[1]\n", "line 1: expected an object with the field 'text', found list"),
        ("a.csv", b"id\n1\n", "expected text in the field 'text', or in 'inputs' and 'targets', found the fields"),
        ("a.txt", b"\xff\xfe\x00", "is not wholly utf-16: truncated data at byte"),
        ("a.txt", "é".encode() * 40 + b"\xff", "is UTF-8 but for some bytes, the first of them byte 80"),
        ("a.txt", bytes(range(1, 256)) * 4, r"is not UTF-8 \(byte 127 can't be read\), nor in another encoding"),
        ("a.docx", b"PK", "can't be read as a Word document"),
        ("a.pdf", b"%PDF-1.4", "can't be read as a PDF"),
        ("a.jsonl", b'{"text": "a \\ud800"}\n', "a.jsonl:1: character 2 is half a surrogate pair"),
        ("a.csv", b'text\n"a stray mark\nb\n', "behind line 1: expected a row of CSV, found unexpected end of data"),
        ("a.txt", "The patient".encode("utf-16-le"), "is full of zero bytes: expected text, found UTF-16 without"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "line 1: expected a JSON object, found Exceeds"),
        ("a.jsonl", b"[" * 100_000, "line 1: expected a JSON object, found maximum recursion depth"),
        ("a.txt", b" \n", "is empty"),
        ("a.jsonl", b'{"inputs": "a", "targets": "b"}\n', "none of the 1 pairs can be used; the first is .*line 1: "),
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
