"""Fit what a model answers into a text, with the spaces that its script has."""

from __future__ import annotations

import re
import unicodedata

from t5refine_peft.corpus.characters import written_without_spaces

_CLOSING = re.compile(r"[\s.,;:!?%)\]}'’”。，、；：！？）】》」』]")
_OPENING = re.compile(r"[\s(\[{'‘“（【《「『/-]")


def fit(filling: str, before: str, after: str) -> str:
    """Space a decoded filling as the script needs it between the characters around the gap.

    A space is put between words where neither the text nor the script says otherwise, and none beside a space, next
    to Han, Kana or Thai, before closing or behind opening punctuation, or within a word that the filling continues.
    """
    starts_word = filling.startswith(" ")
    text = " ".join(filling.split())
    if not text:
        return ""
    front = starts_word and bool(before) and not _OPENING.match(before[-1]) and not _CLOSING.match(text[0])
    if front and (written_without_spaces(before[-1]) or written_without_spaces(text[0])):
        front = False
    within_word = not starts_word and before[-1:].isalnum()
    back = bool(after) and after[0].isalnum() and text[-1].isalnum() and not within_word
    if back and (written_without_spaces(after[0]) or written_without_spaces(text[-1])):
        back = False
    return f"{' ' if front else ''}{text}{' ' if back else ''}"


def normalized(text: str) -> str:
    """The form in which fillings are compared: NFKC, case-folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
