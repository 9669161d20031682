"""Writing so that a reader sees the old or the new, never half; and fingerprints of what was written."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t5refine_peft.errors import RefineError

_STAGED, _ASIDE = ".part", ".old"


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory beside `target`; on success it takes `target`'s place, on an exception it is removed.

    Raises:
        RefineError: the place can't be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_STAGED, dir=target.parent))
    except OSError as error:
        raise RefineError(f"{target} can't be written: {reason(error)}; choose another directory") from None
    try:
        yield staged
        for file in staged.rglob("*"):
            _flush(file)
        staged.chmod(0o755)
        _flush_directory(staged)
        _replace(staged, target)
        _flush_directory(target.parent)
    except OSError as error:
        raise RefineError(f"{target} can't be written: {reason(error)}; what was there is unchanged") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a name beside `target` to write to; on success that file takes `target`'s place, else it is removed.

    Raises:
        RefineError: the place can't be written to.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}{_STAGED}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(target)
        _flush_directory(target.parent)
    except OSError as error:
        raise RefineError(f"{target} can't be written: {reason(error)}; what was there is unchanged") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Why the system would not; those that Python raises for several files at once have no one reason of their own."""
    return error.strerror or str(error)


def free_path(path: str | Path) -> Path:
    """See that nothing lies at `path`, so that what is to be written there replaces nothing.

    Raises:
        RefineError: something does.
    """
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise RefineError(f"{target} is there already: choose another name, or remove it first")
    return target


def write_file(target: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name, flushed, renamed.

    Raises:
        RefineError: the place can't be written to; what was there is unchanged.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefineError(f"{target} can't be written: {reason(error)}; what was there is unchanged") from error
    with atomic_file(target) as temporary:
        temporary.write_bytes(content)


def check_writable(directory: Path) -> None:
    """Try to write a file in `directory`, or where it would be made, before hours of work that end there.

    Raises:
        RefineError: it takes none.
    """
    try:
        nearest = next(place for place in (directory, *directory.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise RefineError(f"{directory} can't be written: {reason(error)}; choose another directory") from None


def remove_directory(directory: Path) -> None:
    """Take a directory away so that no reader sees half of it, even where the removal is cut short."""
    aside = directory.with_name(f".{directory.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def recover(target: Path) -> None:
    """Clear away what writers of `target` that were killed have left; a `target` moved aside by one comes back."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\w{{8}}{re.escape(_STAGED)}({re.escape(_ASIDE)})?")
    for left in [path for path in target.parent.glob(".*") if ours.fullmatch(path.name)]:
        if left.name.endswith(_ASIDE) and not target.exists():
            left.rename(target)
        else:
            shutil.rmtree(left, ignore_errors=True)


def remove_unfinished(directory: Path) -> None:
    """Remove the half files of killed writers from `directory` and those below it; no other may be at work there."""
    for left in directory.rglob(f".*{_STAGED}"):
        if left.is_file():
            left.unlink(missing_ok=True)


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
    aside = staged.with_name(staged.name + _ASIDE)
    try:
        target.rename(aside)
        staged.rename(target)
    except BaseException:  # a second Ctrl+C too comes between them
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("r+b") as stream:  # Windows flushes no file that is open for reading
            os.fsync(stream.fileno())


def _flush_directory(directory: Path) -> None:
    """Make a rename outlast a power cut; Windows knows no such thing and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
