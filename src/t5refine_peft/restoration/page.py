"""The restored text as one self-contained HTML page, each restored piece marked by its score."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator

from t5refine_peft.restoration.results import Restoration, RestoredGap

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Restored text</title><style>
:root { color-scheme: light dark; }
body { font: 17px/1.6 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
p { white-space: pre-wrap; margin: .6rem 0; }
mark { color: inherit; border-radius: .2rem; padding: 0 .1rem; border-bottom: 2px solid; }
mark.sure { background: #2a73; border-color: #2a7; }
mark.likely { background: #db33; border-color: #db3; }
mark.doubtful { background: #d553; border-color: #d55; }
mark.open { background: none; border: 1px dashed #d55; }
.failed { border-left: 4px solid #d55; padding-left: .6rem; }
</style></head><body>
<p><mark class="sure">90% sure or more</mark> <mark class="likely">50% or more</mark>
<mark class="doubtful">less</mark> <mark class="open">left open</mark>; hover for the score and other answers.</p>
"""
_TAIL = "</body></html>\n"


def render_page(restored: Iterable[Restoration | str]) -> Iterator[str]:
    """The page, piece by piece: a paragraph for each restored text; a string is a text that could not be restored."""
    yield _HEAD
    for text in restored:
        if isinstance(text, str):
            yield f'<p class="failed">{html.escape(text)}</p>\n'
        else:
            yield f"<p>{_marked(text)}</p>\n"
    yield _TAIL


def _marked(restored: Restoration) -> str:
    parts = []
    reached = 0
    for gap in restored.gaps:
        kept, filled = restored.text[reached : gap.start], restored.text[gap.start : gap.end]
        parts.append(html.escape(kept))
        parts.append(f'<mark class="{_kind(gap)}" title="{html.escape(_title(gap))}">{html.escape(filled)}</mark>')
        reached = gap.end
    return "".join([*parts, html.escape(restored.text[reached:])])


def _kind(gap: RestoredGap) -> str:
    if gap.open:
        return "open"
    return "sure" if gap.score >= 0.9 else "likely" if gap.score >= 0.5 else "doubtful"


def _title(gap: RestoredGap) -> str:
    answers = "; ".join(f"{answer.text.strip()} {answer.score:.0%}" for answer in gap.candidates)
    return f"{'found as damage; ' if gap.found else ''}{answers}"
