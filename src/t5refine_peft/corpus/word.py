"""Open a Word document, whoever reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t5refine_peft.errors import RefineError

INSTALL_DOCUMENTS = "pip install 't5refine-peft[documents]'"
"""What brings the readers of Word documents and PDFs."""
_LARGEST_RATIO = 200
"""By how much a document may have been compressed; Word's own XML shrinks to a tenth or a fiftieth."""
_SMALL_BYTES = 64 << 20
"""Documents up to this size, unpacked, may have been compressed by more."""


@contextmanager
def word_document(path: Path) -> Iterator[Any]:
    """The document as python-docx gives it, to be read within this context: a damaged one fails at any place.

    Raises:
        RefineError: python-docx is not there; the file is no Word document, a damaged one, or would fill the memory.
    """
    try:
        import docx
    except ImportError:
        raise RefineError(
            f"{path}: reading .docx needs the extra 'documents'; install it with {INSTALL_DOCUMENTS}"
        ) from None
    try:
        _check_size(path)
        yield docx.Document(str(path))
    except (LookupError, ValueError, AttributeError, TypeError):  # parts that are missing, or others
        reason = "its parts do not belong together"
    except Exception as error:  # a broken file makes python-docx, lxml and zlib raise anything
        reason = str(error).partition("\n")[0]
    else:
        return
    raise RefineError(f"{path} can't be read as a Word document ({reason}); save it anew as .docx")


def _check_size(path: Path) -> None:
    """Refuse a document that would fill the memory: python-docx reads it whole."""
    with zipfile.ZipFile(path) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist())
    if unpacked > max(_SMALL_BYTES, _LARGEST_RATIO * path.stat().st_size):
        raise zipfile.BadZipFile(f"{path.stat().st_size:,} bytes that would fill {unpacked:,}")
