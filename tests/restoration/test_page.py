from __future__ import annotations

from html.parser import HTMLParser

from t5refine_peft.restoration.page import render_page
from t5refine_peft.restoration.results import Candidate, Restoration, RestoredGap


class Reader(HTMLParser):
    """Collects the text of paragraphs and the marks in them."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.marks: list[tuple[str, str]] = []
        self.inside = False

    def handle_starttag(self, tag, attributes):
        if tag == "p":
            self.paragraphs.append("")
            self.inside = True
        elif tag == "mark":
            self.marks.append((dict(attributes)["class"], dict(attributes).get("title", "")))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "p"

    def handle_data(self, data):
        if self.inside:
            self.paragraphs[-1] += data


def gap(start: int, text: str, score: float, **kind: bool) -> RestoredGap:
    candidates = (Candidate(text, score), Candidate('"<b>"', 0.1))
    return RestoredGap(start, start + len(text), text, score, candidates, **kind)


def test_pieces_are_marked_by_score_and_everything_is_escaped():
    text = "<i> & heart  failure \n___ x"
    gaps = (
        gap(6, "heart", 0.93),
        gap(13, "failure", 0.6, found=True),
        gap(22, "___", 0.2, open=True),
        gap(26, "x", 0.2),
    )
    page = "".join(render_page([Restoration(text, gaps), "failed <line>"]))
    reader = Reader()
    reader.feed(page)
    assert reader.paragraphs[1:] == [text, "failed <line>"]
    kinds = [kind for kind, _ in reader.marks[4:]]
    assert kinds == ["sure", "likely", "open", "doubtful"]
    assert reader.marks[4][1] == 'heart 93%; "<b>" 10%'
    assert reader.marks[5][1].startswith("found as damage; failure 60%")
    assert "http" not in page
