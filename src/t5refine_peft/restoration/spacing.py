"""Fit what a model answers into a text, with the spaces that its script has."""

from __future__ import annotations

import unicodedata

from t5refine_peft.corpus.characters import extends_character, written_without_spaces

_CLOSING = frozenset(".,;:!?%'’”。，、；：！？،؛؟।…")
_CLOSING_KINDS = ("Pe", "Pf", "M")
"""Unicode's categories of closing brackets, closing quotes, and accents of the character before."""
_OPENING = frozenset("'\"/-#@¿¡")
_OPENING_KINDS = ("Ps", "Pi", "Sc", "Cf")
"""Opening brackets, opening quotes, signs of currency, and what is not seen, as a joiner or the mark of an encoding."""


def fit(filling: str, before: str, after: str) -> str:
    """Space a decoded filling as the script needs it between the characters around the gap.

    A space is put between words where neither the text nor the script says otherwise, and none beside a space, next
    to Han, Kana or Thai, before closing or behind opening punctuation, or within a word that the filling continues.
    """
    starts_word = filling.startswith(" ")
    text = " ".join(filling.split())
    if not text:
        return ""
    front = starts_word and bool(before) and not _opens(before[-1]) and not _closes(text[0])
    if front and (written_without_spaces(before[-1]) or written_without_spaces(text[0])):
        front = False
    within_word = not starts_word and _ends_in_word(before)
    back = bool(after) and after[0].isalnum() and _ends_in_word(text) and not within_word
    if back and (written_without_spaces(after[0]) or written_without_spaces(text[-1])):
        back = False
    return f"{' ' if front else ''}{text}{' ' if back else ''}"


def _opens(char: str) -> bool:
    return char.isspace() or char in _OPENING or unicodedata.category(char).startswith(_OPENING_KINDS)


def _closes(char: str) -> bool:
    return char in _CLOSING or unicodedata.category(char).startswith(_CLOSING_KINDS)


def _ends_in_word(text: str) -> bool:
    """Whether the last character, with its accents or vowel signs, is of a word; of marks alone, that they are."""
    base = next((char for char in reversed(text) if not extends_character(char)), text[:1])
    return base.isalnum() or unicodedata.category(base or " ").startswith("M")


def normalized(text: str) -> str:
    """The form in which fillings are compared: NFKC, case-folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
