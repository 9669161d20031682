"""An adapter as one file. What comes in from elsewhere is judged by its table of contents, then read within bounds.

Only the four files of an adapter are ever written, under names of ours: nothing in an archive decides a path.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from t5refine_peft.errors import RefineError
from t5refine_peft.registry.card import read_card
from t5refine_peft.registry.files import CARD_FILE, CONFIG_FILE, REPORT_FILE, WEIGHTS_FILE, short
from t5refine_peft.registry.layout import read_layout
from t5refine_peft.registry.names import is_name
from t5refine_peft.storage import write_file

_FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, REPORT_FILE)
_NEEDED = (WEIGHTS_FILE, CONFIG_FILE)
_METHODS = {WEIGHTS_FILE: zipfile.ZIP_STORED}
"""Weights are noise to a compressor; all else is deflated."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")
_LARGEST_TEXT_BYTES = 16 << 20
_LARGEST_RATIO = 20
"""By how much a file may shrink. bf16 weights give 1.3, an untrained adapter (half zeros) 2.6, JSON and HTML 3 to 8."""
_SMALL_BYTES = 1 << 20
"""Files up to this size may shrink by more: they fill no disk."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK_BYTES = 1 << 20
_REMEDY = "make the archive anew with `t5refine adapters pack`"


def pack(directory: Path, name: str, file: Path) -> Path:
    """Write the files of the sound adapter in `directory` to the archive `file`, under the directory `name`.

    Raises:
        RefineError: the adapter is broken or holds a link, or the file can't be written.
    """
    read_layout(directory)
    read_card(directory)
    buffer = io.BytesIO()
    try:
        with zipfile.ZipFile(buffer, "w") as packed:
            for part in _FILES:
                if (directory / part).is_symlink():  # it would carry off what it points to
                    raise RefineError(f"{directory / part} is a link: expected a file; put a copy in its place")
                if (directory / part).is_file():
                    entry = zipfile.ZipInfo(f"{name}/{part}", date_time=_EPOCH)
                    entry.compress_type = _METHODS.get(part, zipfile.ZIP_DEFLATED)
                    entry.external_attr = (stat.S_IFREG | 0o644) << 16
                    packed.writestr(entry, (directory / part).read_bytes())
    except OSError as error:
        raise RefineError(f"{directory} can't be read: {error.strerror}") from error
    write_file(file, buffer.getvalue())
    return file


@dataclass(frozen=True)
class Contents:
    """An opened archive whose table of contents is that of one adapter."""

    file: Path
    name: str
    """Of the adapter: the one directory in the archive."""
    packed: zipfile.ZipFile
    entries: Mapping[str, zipfile.ZipInfo]
    """By the adapter's file names."""

    def extract(self, directory: Path) -> None:
        """Write the files to `directory`, none longer than its entry says.

        Raises:
            RefineError: an entry can't be unpacked, or is not what the table of contents says.
        """
        for part, entry in self.entries.items():
            try:
                with self.packed.open(entry) as source, (directory / part).open("xb") as target:
                    while chunk := source.read(_CHUNK_BYTES):
                        target.write(chunk)
                        if target.tell() > entry.file_size:
                            raise zipfile.BadZipFile("it is longer than it says")
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
                raise RefineError(
                    f"{self.file} is a broken archive: {part} can't be unpacked ({error}); {_REMEDY}"
                ) from None


@contextmanager
def opened(file: Path) -> Iterator[Contents]:
    """Open an archive from anywhere and judge its table of contents.

    Raises:
        RefineError: it is no zip archive, or holds anything but the files of one adapter: other names, links, pickles,
            a path that leads out of it, or far more bytes than it has.
    """
    try:
        with zipfile.ZipFile(file) as packed:
            faults: list[str] = []
            names, entries = set(), {}
            archive_bytes = file.stat().st_size
            for entry in packed.infolist():
                directory, part = _judge(entry, archive_bytes, faults)
                if part in entries:
                    faults.append(f"{part} twice")
                names.add(directory)
                entries[part] = entry
            missing = [part for part in _NEEDED if part not in entries]
            if not faults and missing:
                faults.append(f"no {' and no '.join(missing)}")
            if not faults and len(names) > 1:
                faults.append(f"{len(names)} adapters")
            if faults:
                more = f" and {len(faults) - 3} more faults" if len(faults) > 3 else ""
                raise RefineError(
                    f"{file} is no archive of one adapter: expected {', '.join(_FILES)} in one directory, found "
                    f"{', '.join(faults[:3])}{more}; nothing was unpacked, {_REMEDY}"
                )
            yield Contents(file, names.pop(), packed, entries)
    except OSError as error:
        raise RefineError(f"{file} can't be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise RefineError(f"{file} is no zip archive that can be read ({error}); {_REMEDY}") from None


def _judge(entry: zipfile.ZipInfo, archive_bytes: int, faults: list[str]) -> tuple[str, str]:
    """Directory and file of an entry; what is wrong with it goes to `faults`."""
    packed_bytes = min(entry.compress_size, archive_bytes)  # it may claim more than there is
    raw = entry.orig_filename  # as it stands in the archive: ZipInfo cuts `filename` at a NUL
    directory, _, part = raw.partition("/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if part.lower().endswith(_PICKLES) or raw.lower().endswith(_PICKLES):
        faults.append(f"{short(raw)}, which could run code when it is loaded")
    elif part not in _FILES:
        faults.append(short(raw))
    elif kind not in (0, stat.S_IFREG):
        faults.append(f"{short(raw)}, which is a link or a device")
    elif entry.extra or entry.comment:  # a damaged length there could hide the entry behind
        faults.append(f"{short(raw)} with notes of another program")
    elif entry.flag_bits & 0x1:
        faults.append(f"{short(raw)} encrypted")
    elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        faults.append(f"{short(raw)} compressed by method {entry.compress_type}")
    elif part != WEIGHTS_FILE and entry.file_size > _LARGEST_TEXT_BYTES:
        faults.append(f"{short(raw)} of {entry.file_size:,} bytes")
    elif entry.file_size > max(_SMALL_BYTES, _LARGEST_RATIO * packed_bytes):
        faults.append(f"{short(raw)}, {packed_bytes:,} bytes that would fill {entry.file_size:,}")
    elif not is_name(directory):
        faults.append(f"the directory {short(directory)}")
    return directory, part
