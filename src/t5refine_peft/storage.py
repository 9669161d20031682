"""Writing so that a reader sees the old or the new, never half; and fingerprints of what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from t5refine_peft.errors import RefineError


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory beside `target`; on success it takes `target`'s place, on an exception it is removed.

    Raises:
        RefineError: the place can't be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise RefineError(f"{target} can't be written: {error.strerror}; choose another directory") from None
    try:
        yield staged
        for file in staged.rglob("*"):
            _flush(file)
        staged.chmod(0o755)
        _replace(staged, target)
    except OSError as error:
        raise RefineError(f"{target} can't be written: {error.strerror}; what was there is unchanged") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[IO[bytes]]:
    """Give a stream to write to; on success what was written takes `target`'s place, on an exception it is removed.

    Raises:
        RefineError: the place can't be written to.
    """
    staged = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with staged.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(target)
    except OSError as error:
        raise RefineError(f"{target} can't be written: {error.strerror}; choose another place") from error
    finally:
        staged.unlink(missing_ok=True)


def fingerprint_files(files: list[Path]) -> str:
    """Names and contents of `files` as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _replace(staged: Path, target: Path) -> None:
    """Rename `staged` to `target`; a directory in its place is moved aside first and comes back if the rename fails."""
    if not target.exists():
        staged.rename(target)
        return
    aside = staged.with_name(staged.name + ".old")
    target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
