"""What kind of character stands where: letters, scripts without spaces, marks that belong to the character before."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import numpy as np

_NO_WORD_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Scripts written without spaces: Thai, Lao, Burmese, Khmer, Kana, Han. Each of their pieces may begin a word."""
_JOINER = 0x200D
_SKIN_TONES = range(0x1F3FB, 0x1F400)

_LETTER, _UNSPACED, _EXTENDS = 1, 2, 4
_TABLE_SIZE = 0x20000


def written_without_spaces(char: str) -> bool:
    """Whether `char` is of a script that puts no spaces between words (Han, Kana, Thai, Lao, Khmer, Burmese)."""
    return _NO_WORD_SPACES.match(char) is not None


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
    kinds = _kinds_of(points)
    inside_word = _is_spaced(kinds)
    goes_on = np.zeros(len(points), dtype=bool)
    goes_on[1:] = inside_word[1:] & inside_word[:-1]
    goes_on |= (kinds & _EXTENDS) > 0
    goes_on[1:] |= points[:-1] == _JOINER
    # An accent does not end the word that it stands in: "e" + acute + "t" is one word.
    extended = np.flatnonzero(((kinds[:-1] & _EXTENDS) > 0) & inside_word[1:])
    if len(extended):
        bases = np.where((kinds & _EXTENDS) > 0, 0, np.arange(len(points)))
        goes_on[extended + 1] |= inside_word[np.maximum.accumulate(bases)[extended]]
    goes_on[0] = False
    return ~goes_on


def cuts_word(text: str) -> np.ndarray:
    """Tell before which characters a cut goes through a word of a script with spaces.

    Returns:
        (characters + 1,) bool; the last is for the end of the text.
    """
    cuts = np.zeros(len(text) + 1, dtype=bool)
    spaced = _is_spaced(_kinds_of(code_points(text)))
    cuts[1:-1] = spaced[1:] & spaced[:-1]
    return cuts


def code_points(text: str) -> np.ndarray:
    """The code points of `text`, (characters,) uint32; half of a surrogate pair is one."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _is_spaced(kinds: np.ndarray) -> np.ndarray:
    """Which characters are letters or digits of scripts that put spaces between words."""
    spaced: np.ndarray = (kinds & (_LETTER | _UNSPACED)) == _LETTER
    return spaced


def _kinds_of(points: np.ndarray) -> np.ndarray:
    kinds: np.ndarray = _kinds()[points if points.max(initial=0) < _TABLE_SIZE else _stand_ins(points)]
    return kinds


def _stand_ins(points: np.ndarray) -> np.ndarray:
    """`points` with those above the first two planes replaced: Han, then variation selectors, then nothing of ours."""
    selectors = (points >= 0xE0100) & (points < 0xE01F0)
    known = points < _TABLE_SIZE
    return np.select([known, points < 0x40000, selectors], [points.astype(np.int64), ord("一"), 0xFE0F], ord(" "))


@cache
def _kinds() -> np.ndarray:
    """The kind of each code point of the first two planes, (_TABLE_SIZE,) uint8."""
    chars = [chr(point) for point in range(_TABLE_SIZE)]
    letter = np.array([char.isalnum() for char in chars], dtype=np.uint8) * _LETTER
    extends = np.array([extends_character(char) for char in chars], dtype=np.uint8) * _EXTENDS
    unspaced = np.zeros(len(chars), dtype=np.uint8)
    for match in _NO_WORD_SPACES.finditer("".join(chars)):
        unspaced[match.start()] = _UNSPACED
    kinds: np.ndarray = letter | extends | unspaced
    return kinds
