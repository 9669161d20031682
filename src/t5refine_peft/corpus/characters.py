"""What kind of character stands where: letters, scripts without spaces, marks that belong to the character before."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable

import numpy as np
import regex

_NO_WORD_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Scripts written without spaces: Thai, Lao, Burmese, Khmer, Kana, Han. Each of their pieces may begin a word."""
_JOINER = 0x200D
_SKIN_TONES = range(0x1F3FB, 0x1F400)

_JOINS = regex.compile(r"[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=L}\p{GCB=V}\p{GCB=T}]")

_SPACED, _EXTENDS = 1, 2
_FIRST_BORDER, _LAST_BORDER = 0x40000, 0xE0000
"""Planes 4 to 13, in which nothing is assigned; letters of scripts with spaces, and accents, lie in the first two."""


class CodePointTable:
    """A number for each character, worked out once for each that occurs."""

    def __init__(self, number: Callable[[str], int], dtype: type) -> None:
        """Take what tells a character's number, not negative, and the type that holds it."""
        self._number = number
        self._numbers: np.ndarray = np.full(sys.maxunicode + 1, -1, dtype=dtype)

    def __getitem__(self, points: np.ndarray) -> np.ndarray:
        """The numbers of `points`, (characters,) code points."""
        numbers: np.ndarray = self._numbers[points]
        if numbers.min(initial=0) < 0:
            for point in np.unique(points[numbers < 0]).tolist():
                self._numbers[point] = self._number(chr(point))
            numbers = self._numbers[points]
        return numbers


def written_without_spaces(char: str) -> bool:
    """Whether `char` is of a script that puts no spaces between words (Han, Kana, Thai, Lao, Khmer, Burmese)."""
    return _NO_WORD_SPACES.match(char) is not None


def may_join(char: str) -> bool:
    """Whether normalisation may join `char` to the one before: accents, vowel signs, parts of Hangul syllables."""
    return _JOINS.match(char) is not None


def extends_character(char: str) -> bool:
    """Whether `char` belongs to the one before it: accents, vowel signs, joiners, variation selectors, skin tones."""
    return unicodedata.category(char)[0] == "M" or ord(char) == _JOINER or ord(char) in _SKIN_TONES


def begins_word(text: str) -> np.ndarray:
    """Tell where a word may begin.

    A word begins at a letter or digit behind a character that is none, at every character of a script without spaces,
    and at every mark of punctuation; never at a character that extends the one before, nor behind a joiner.

    Returns:
        (characters,) bool.
    """
    points = code_points(text)
    if not len(points):
        return np.zeros(0, dtype=bool)
    kinds = _KINDS[points]
    inside_word = kinds == _SPACED  # letters of scripts with spaces, so far
    goes_on = kinds >= _EXTENDS
    extended = np.flatnonzero(goes_on[:-1] & inside_word[1:])
    if len(extended):  # an accent does not end the word that it stands in: "e" + acute + "t" is one word
        bases = np.maximum.accumulate(np.where(goes_on, 0, np.arange(len(points))))[extended]
    goes_on[1:] |= inside_word[1:] & inside_word[:-1]
    goes_on[1:] |= points[:-1] == _JOINER
    if len(extended):
        goes_on[extended + 1] |= inside_word[bases]
    goes_on[0] = False
    return ~goes_on


def mark_borders(text: str) -> str:
    """`text` with what begins or ends a word, in scripts with spaces, replaced by a character that tells so.

    What is searched for with its own borders marked is thus found as whole words only, and every place stays the same.
    The stand-ins are code points of which no character is made; where `text` has these, or halves of a surrogate pair,
    it gets the replacement character.
    """
    points = code_points(text)
    if points.max(initial=0) >= _FIRST_BORDER:
        points = np.where((points >= _FIRST_BORDER) & (points < _LAST_BORDER), 0xFFFD, points)
    kinds = _KINDS[points]
    spaced = np.zeros(len(points) + 2, dtype=bool)
    spaced[1:-1] = kinds == _SPACED
    extends = (kinds >= _EXTENDS) & (points < _FIRST_BORDER)
    if extends.any():  # an accent or vowel sign is of the word that its letter is of
        bases = np.maximum.accumulate(np.where(extends, 0, np.arange(len(points))))
        spaced[1:-1] |= extends & spaced[1:-1][bases]
    begins = spaced[1:-1] > spaced[:-2]
    ends = spaced[1:-1] > spaced[2:]
    marked = points + _FIRST_BORDER * (begins + np.uint32(2) * ends)
    return marked.tobytes().decode("utf-32-le", "replace")


def code_points(text: str) -> np.ndarray:
    """The code points of `text`, (characters,) uint32; half of a surrogate pair is one."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _kind(char: str) -> int:
    if char.isalnum() and not written_without_spaces(char):
        return _SPACED
    return _EXTENDS if extends_character(char) else 0


_KINDS = CodePointTable(_kind, np.int8)
