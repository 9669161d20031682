"""Names of adapters: plain file names on every system, and nothing else."""

from __future__ import annotations

import re
import unicodedata

from t5refine_peft.errors import RefineError

_PLAIN = re.compile(r"\w(?:[\w.-]{0,98}[\w-])?")
_LONGEST_BYTES = 200
"""File systems take 255; a temporary name adds a few."""
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE)
"""What Windows keeps for itself, with any ending."""


def check_name(name: str) -> str:
    """Give back a name that any system takes as a file's.

    Raises:
        RefineError: it has a separator or another character that not all take, begins or ends with a dot, is too long,
            is a device's, or is one of several spellings of the same name (Unicode's NFC is the one that is taken).
    """
    if not _is_plain(name):
        raise RefineError(
            f"{name!r} can't name an adapter: expected up to 100 letters, digits, '_', '-' and '.', and no '.' in "
            "front or at the end"
        )
    if _is_device(name):
        raise RefineError(f"{name!r} can't name an adapter: Windows keeps that name for a device; choose another")
    composed = unicodedata.normalize("NFC", name)
    if composed != name:
        raise RefineError(
            f"{name!a} can't name an adapter: some systems take it for {composed!a}, which looks the same; give that"
        )
    return name


def is_name(name: str) -> bool:
    """Whether `check_name` takes it."""
    return _is_plain(name) and not _is_device(name) and unicodedata.is_normalized("NFC", name)


def _is_plain(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None and len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_BYTES


def _is_device(name: str) -> bool:
    return _DEVICES.fullmatch(name) is not None
