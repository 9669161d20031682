"""The encoding of a text file: UTF-8 first, then what a library finds."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import BinaryIO

from t5refine_peft.errors import RefineError

_BLOCK_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 18
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MOST_ZEROS = 0.25
"""Share of zero bytes from which on a file is no text in any encoding that goes without a mark."""

_CANDIDATES = (
    "gb18030", "big5", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949", "cp1251", "cp1252", "latin_1",
)  # fmt: skip
"""What texts of mT5's languages come in. Without such a list, Latin-1 is taken for one of its many siblings."""

_THRESHOLDS = (0.2, 0.4, 0.6, 0.8)
"""Share of odd characters that a guess may have, the library's own default first: a short text full of full-width
quotation marks seems odd to it."""

_UTF8_SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}|([\x80-\xff])",
)
"""A character of several bytes in UTF-8, or, as group 1, a byte that belongs to none."""


def find_encoding(path: Path) -> str:
    """The Python name of `path`'s encoding: `utf-8-sig` for UTF-8 with or without a byte order mark.

    The whole file is read once, a block at a time, to be sure of UTF-8.

    Raises:
        RefineError: the file can't be read, is UTF-8 with a few broken bytes, is full of zero bytes, or is in no
            encoding that is known.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_SAMPLE_BYTES)
            for mark, name in _MARKS:
                if head.startswith(mark):
                    return name
            # In ASCII's part, UTF-16 is UTF-8 with a zero at every other byte.
            if head.count(0) > _MOST_ZEROS * len(head):
                raise RefineError(
                    f"{path} is full of zero bytes: expected text, found UTF-16 without a byte order mark, or no text "
                    "at all; convert the file to UTF-8 first, or leave it out"
                )
            stream.seek(0)
            broken = _first_broken_byte(stream)
            if broken is None:
                return "utf-8-sig"
            start = max(0, broken - _SAMPLE_BYTES // 2)
            stream.seek(start)
            sample = _whole_characters(stream.read(_SAMPLE_BYTES), from_middle=start > 0)
    except OSError as error:
        raise RefineError(f"{path} can't be read: {error.strerror}") from None
    if _is_damaged_utf8(sample):
        raise RefineError(
            f"{path} is UTF-8 but for some bytes, the first of them byte {broken}; mend or convert the file first"
        )
    return _detect(path, sample, broken)


def undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> RefineError:
    """What to tell the user of a file that turns out not to be wholly in the encoding that was found."""
    name = "UTF-8" if encoding == "utf-8-sig" else encoding
    return RefineError(f"{path} is not wholly {name}: {error.reason} at byte {error.start}; convert the file first")


def _first_broken_byte(stream: BinaryIO) -> int | None:
    """Where a stream stops being UTF-8, None where it never does."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    while True:
        block = stream.read(_BLOCK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return at - pending + error.start
        if not block:
            return None
        at += len(block)


def _whole_characters(sample: bytes, *, from_middle: bool) -> bytes:
    """`sample` without characters that were cut at its ends: up to bytes that are characters in every encoding.

    Blanks and line ends are: no encoding has bytes below 0x30 within a character, but UTF-16, which has its mark.
    """
    if len(sample) < _SAMPLE_BYTES and not from_middle:
        return sample
    first = re.search(rb"[\x00-\x2f]", sample) if from_middle else None
    last = re.search(rb"[\x00-\x2f][^\x00-\x2f]*$", sample)
    return sample[first.start() if first else 0 : last.start() if last else len(sample)]


def _is_damaged_utf8(sample: bytes) -> bool:
    """Whether nearly all bytes beyond ASCII form UTF-8: then no other encoding is meant.

    In text of another encoding few such bytes happen to.
    """
    whole = stray = 0
    for match in _UTF8_SEQUENCE.finditer(sample):
        whole, stray = (whole, stray + 1) if match[1] else (whole + 1, stray)
    return whole > 20 * stray


def _detect(path: Path, sample: bytes, broken: int) -> str:
    import charset_normalizer

    for threshold in _THRESHOLDS:
        best = charset_normalizer.from_bytes(sample, cp_isolation=list(_CANDIDATES), threshold=threshold).best()
        if best is not None:
            break
    else:
        raise RefineError(
            f"{path} is not UTF-8 (byte {broken} can't be read), nor in another encoding that was recognised "
            f"(tried: {', '.join(_CANDIDATES)}); convert the file to UTF-8 first"
        )
    return str(best.encoding)
