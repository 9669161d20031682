"""Restore a Word document (.docx) in place: its layout stays, only the text of the gaps changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from t5refine_peft.corpus.word import word_document
from t5refine_peft.errors import RefineError
from t5refine_peft.restoration.lines import Line, LineResult, restore_lines
from t5refine_peft.restoration.restorer import RestoreOptions, Restorer
from t5refine_peft.restoration.results import Restoration
from t5refine_peft.storage import atomic_file

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_PARTS = ("/header", "/footer", "/footnotes", "/endnotes")
"""Kinds of parts beside the body that hold paragraphs."""
_BREAKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "\u2011"}


def restore_document(
    restorer: Restorer,
    source: str | Path,
    target: str | Path,
    *,
    strict: bool = False,
    **options: Unpack[RestoreOptions],
) -> list[LineResult]:
    """Fill the gaps in a Word document's paragraphs, tables, headers, footers and notes, and write it to `target`.

    A paragraph is one text, however many runs it is set in. What fills a gap is set as the gap's first character was.

    Args:
        restorer: the model.
        source: a .docx file.
        target: where the restored one is written.
        strict: raise at the first paragraph that fails; else it stays as it was.
        options: as `Restorer.restore` takes them.

    Returns:
        The paragraphs that had gaps, and those that failed, each by its number.

    Raises:
        RefineError: python-docx is not there, `source` is no Word document, gaps are given as ranges, which go by
            text, or `strict` is asked for and a paragraph failed.
    """
    if options.get("gaps") is not None or not isinstance(options.get("adapter"), str | None):
        raise RefineError("a document takes one adapter, and marks for gaps; call Restorer.restore for others")
    with word_document(Path(source)) as document:
        roots = _roots(document)
    paragraphs = [pieces for root in roots for element in root.iter(f"{_W}p") if (pieces := _pieces(element))]
    texts = ("".join(text for _, text in pieces) for pieces in paragraphs)
    lines = (
        Line(number=number, raw=b"", where=f"{source}, paragraph {number}", text=text)
        for number, text in enumerate(texts, start=1)
    )
    found = []
    for pieces, result in zip(paragraphs, restore_lines(restorer, lines, strict=strict, **options), strict=True):
        if result.restoration is None or result.restoration.gaps:
            found.append(result)
        if result.restoration is not None and result.restoration.text != result.line.text:
            _write_back(pieces, result.restoration)
    with atomic_file(Path(target)) as temporary:
        document.save(str(temporary))
    return found


def _roots(document: Any) -> list[Any]:
    """The XML of the body with its tables and text boxes, of headers and footers, and of notes, each part once."""
    from docx.opc.part import XmlPart

    roots = [document.part.element]
    for relation in list(document.part.rels.values()):
        if not relation.reltype.endswith(_PARTS):
            continue
        part = relation.target_part
        if not isinstance(part, XmlPart):  # python-docx knows no notes, and would write them as they were read
            part = XmlPart.load(part.partname, part.content_type, part.blob, part.package)
            part.rels.update(relation.target_part.rels)
            document.part.load_rel(relation.reltype, part, relation.rId)
        roots.append(part.element)
    return list(dict.fromkeys(roots))


def _pieces(paragraph: Any) -> list[tuple[Any, str]]:
    """The paragraph's texts in order, each with its element; a tab or a break is what it looks like."""
    pieces: list[tuple[Any, str]] = []
    for element in paragraph.iter(f"{_W}t", *_BREAKS):
        if next(element.iterancestors(f"{_W}p")) is not paragraph:
            continue  # of a text box's own paragraph
        if element.getparent().tag != f"{_W}r":
            continue  # a tab stop's definition, say
        pieces.append((element, _BREAKS.get(element.tag, element.text or "")))
    return pieces


def _write_back(pieces: Sequence[tuple[Any, str]], restoration: Restoration) -> None:
    """Give each element its part of the restored text; a filling goes to the element in which its gap began."""
    spans = _source_spans(restoration)
    at = 0
    for element, own in pieces:
        start, end = at, at + len(own)
        at = end
        new, place = "", start
        for (gap_start, gap_end), filling in spans:
            if gap_end <= start:
                continue
            if gap_start >= end:
                break
            new += own[place - start : max(place, gap_start) - start]
            new += filling if gap_start >= start else ""
            place = min(gap_end, end)
        new += own[place - start :]
        if new == own:
            continue
        text = element
        if element.tag in _BREAKS:  # it was in a gap
            text = element.makeelement(f"{_W}t")
            element.getparent().replace(element, text)
        text.text = new
        text.set(_SPACE, "preserve")


def _source_spans(restoration: Restoration) -> list[tuple[tuple[int, int], str]]:
    """Where the gaps were in the text as it was, each with what fills it."""
    spans = []
    shift = 0
    for gap, width in zip(restoration.gaps, restoration.source_lengths, strict=True):
        start = gap.start - shift
        spans.append(((start, start + width), gap.text))
        shift += len(gap.text) - width
    return spans
