from __future__ import annotations

import io
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.shared import Pt

from t5refine_peft import Glossary, RefineError, Restorer, load_base
from t5refine_peft.restoration import word_documents as module
from t5refine_peft.restoration.results import Restoration
from t5refine_peft.restoration.word_documents import restore_document


@pytest.fixture(scope="module")
def restorer(tiny_base: Path) -> Restorer:
    return Restorer(load_base(tiny_base, device="cpu", precision="float32"), adapters_dir="none")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    document = docx.Document()
    paragraph = document.add_paragraph("He takes __")
    paragraph.add_run("_").bold = True
    paragraph.add_run(" for oedema and ").italic = True
    paragraph.add_run("<extra_id_0>").font.size = Pt(20)
    paragraph.add_run("\tdaily.")
    document.add_table(1, 2).cell(0, 1).text = "cell □"
    document.add_paragraph("no gap  here ")
    document.sections[0].header.paragraphs[0].text = "head [MASK]"
    document.save(tmp_path / "in.docx")
    return tmp_path / "in.docx"


def restored_paragraphs(restorer: Restorer, source: Path, target: Path, **options: Any) -> list[Restoration]:
    """The paragraphs that had gaps, none of which failed."""
    return [result.restoration for result in restore_document(restorer, source, target, **options)]


def test_a_paragraph_that_fails_stays_and_does_not_stop_the_rest(restorer, tmp_path: Path):
    document = docx.Document()
    for text in ("takes □□□□□□□□□□ now", "no gap", "合同___成立"):
        document.add_paragraph(text)
    document.save(tmp_path / "in.docx")
    options = {"glossary": Glossary(["撤销权"]), "count_marks": True}
    failed, done = restore_document(restorer, tmp_path / "in.docx", tmp_path / "out.docx", **options)
    assert "in.docx, paragraph 1: the glossary holds no term of 10 characters" in failed.error
    assert done.error is None
    after = [paragraph.text for paragraph in docx.Document(tmp_path / "out.docx").paragraphs]
    assert after == ["takes □□□□□□□□□□ now", "no gap", "合同撤销权成立"]
    with pytest.raises(RefineError, match="paragraph 1"):
        restore_document(restorer, tmp_path / "in.docx", tmp_path / "strict.docx", strict=True, **options)
    assert not (tmp_path / "strict.docx").exists()


def test_the_layout_stays_and_gaps_across_runs_are_filled(restorer, source: Path, tmp_path: Path):
    restored = restored_paragraphs(restorer, source, tmp_path / "out.docx", max_gap_tokens=2)
    assert sorted(len(one.gaps) for one in restored) == [1, 1, 2]
    before, after = docx.Document(source), docx.Document(tmp_path / "out.docx")
    runs = after.paragraphs[0].runs
    assert after.paragraphs[0].text == next(one.text for one in restored if len(one.gaps) == 2)
    assert [(run.bold, run.italic, run.font.size) for run in runs] == [
        (run.bold, run.italic, run.font.size) for run in before.paragraphs[0].runs
    ]
    assert runs[0].text.startswith("He takes ")
    assert runs[0].text.strip() != "He takes"  # the filling stands where the gap began
    assert runs[1].text == ""
    assert runs[2].text == " for oedema and "
    assert runs[3].text not in ("", "<extra_id_0>")
    assert runs[4].text == "\tdaily."
    cell = after.tables[0].cell(0, 1).text
    assert cell.startswith("cell ")
    assert "□" not in cell
    assert after.paragraphs[-1].text == "no gap  here "
    head = after.sections[0].header.paragraphs[0].text
    assert head.startswith("head ")
    assert "[MASK]" not in head


@pytest.mark.parametrize("gap", ["\t", "<\t>"])
def test_a_mark_with_a_tab_in_it_is_filled_and_gone(restorer, tmp_path: Path, gap: str):
    document = docx.Document()
    document.add_paragraph(f"He takes{gap}daily.")
    document.save(tmp_path / "in.docx")
    (restored,) = restored_paragraphs(restorer, tmp_path / "in.docx", tmp_path / "out.docx", gap=gap, max_gap_tokens=2)
    assert len(restored.gaps) == 1
    assert restored.gaps[0].text.strip()
    assert docx.Document(tmp_path / "out.docx").paragraphs[0].text == restored.text


NOTES = (
    '<w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:footnote w:id="2"><w:p>'
    "<w:r><w:t>see __</w:t></w:r><w:r><w:t>_ above</w:t></w:r></w:p></w:footnote></w:footnotes>"
)


def test_notes_are_restored_too(restorer, source: Path, tmp_path: Path):
    document = docx.Document(source)
    part = Part(
        PackURI("/word/footnotes.xml"),
        "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml",
        NOTES.encode(),
        document.part.package,
    )
    link = part.relate_to("https://example.org", RELATIONSHIP_TYPE.HYPERLINK, is_external=True)
    document.part.relate_to(part, RELATIONSHIP_TYPE.FOOTNOTES)
    document.save(source)
    restored = restored_paragraphs(restorer, source, tmp_path / "out.docx", max_gap_tokens=2)
    assert sum(len(one.gaps) for one in restored) == 5
    after = docx.Document(tmp_path / "out.docx").part.part_related_by(RELATIONSHIP_TYPE.FOOTNOTES)
    root = parse_xml(after.blob)
    note = "".join(text.text or "" for text in root.iter(f"{module._W}t"))
    assert note in [one.text for one in restored]
    assert note.startswith("see ")
    assert note.endswith(" above")
    assert "_" not in note
    assert after.rels[link].target_ref == "https://example.org"


def test_spoiled_documents_are_refused_in_a_sentence(restorer, source: Path, tmp_path: Path, monkeypatch):
    """Bytes changed, parts cut off, left out or put for others: read, or refused, and nothing is written then."""
    monkeypatch.setattr(restorer, "restore", lambda texts, **_: [Restoration(text, ()) for text in texts])
    good = source.read_bytes()
    with zipfile.ZipFile(source) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    rng = random.Random(0)
    spoiled = []
    for name, content in parts.items():
        for new in (None, b"", b"<a/>", b"\0", content[: len(content) // 2], content.replace(b"body", b"boby")):
            spoiled.append(zipped({**parts, name: new}))
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.choice([1, 3, 10])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        spoiled.append(bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data))
    spoiled.append(zipped({**parts, "word/media/bomb": bytes(65 << 20)}))
    refused = []
    for number, data in enumerate(spoiled):
        source.write_bytes(data)
        target = tmp_path / f"{number}.docx"
        try:
            restore_document(restorer, source, target)
        except RefineError as error:
            refused.append(str(error))
            assert "can't be read as a Word document" in refused[-1]
            assert refused[-1].isprintable()
            assert not target.exists()
    assert "would fill" in refused[-1]
    assert len(refused) > len(spoiled) / 2


def zipped(parts: dict[str, bytes | None]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            if content is not None:
                packed.writestr(name, content)
    return buffer.getvalue()


def test_ranges_which_go_by_text_are_refused(restorer, source: Path, tmp_path: Path):
    with pytest.raises(RefineError, match="a document takes one adapter, and marks for gaps"):
        restore_document(restorer, source, tmp_path / "out.docx", gaps=[[(0, 1)]])


def test_what_is_no_word_document_is_refused(restorer, tmp_path: Path):
    (tmp_path / "x.docx").write_bytes(b"PK not really")
    with pytest.raises(RefineError, match="can't be read as a Word document"):
        restore_document(restorer, tmp_path / "x.docx", tmp_path / "out.docx")
    assert not (tmp_path / "out.docx").exists()


def test_without_the_extra_it_says_what_to_install(restorer, source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "docx", None)
    with pytest.raises(RefineError, match=r"pip install 't5refine-peft\[documents\]'"):
        restore_document(restorer, source, tmp_path / "out.docx")
