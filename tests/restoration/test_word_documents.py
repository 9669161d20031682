from __future__ import annotations

import sys
from pathlib import Path

import docx
import pytest
from docx.shared import Pt

from t5refine_peft import RefineError, Restorer, load_base
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


def test_the_layout_stays_and_gaps_across_runs_are_filled(restorer, source: Path, tmp_path: Path):
    restored = restore_document(restorer, source, tmp_path / "out.docx", max_gap_tokens=2)
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


def test_what_is_no_word_document_is_refused(restorer, tmp_path: Path):
    (tmp_path / "x.docx").write_bytes(b"PK not really")
    with pytest.raises(RefineError, match="can't be read as a Word document"):
        restore_document(restorer, tmp_path / "x.docx", tmp_path / "out.docx")
    assert not (tmp_path / "out.docx").exists()


def test_without_the_extra_it_says_what_to_install(restorer, source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "docx", None)
    with pytest.raises(RefineError, match=r"pip install 't5refine-peft\[documents\]'"):
        restore_document(restorer, source, tmp_path / "out.docx")
