"""The directory of a run: which run it is, and its checkpoints, each of them whole or absent."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import DatasetDict

from t5refine_peft.errors import RefineError
from t5refine_peft.storage import atomic_directory, fingerprint_files, remove_directory, write_file

logger = logging.getLogger(__name__)

_RECORD = "run.json"
_STATE = "trainer_state.json"
_FINGERPRINTS = "fingerprints.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_LEFT = re.compile(r"\.checkpoint-\d+\..+")


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a run depends on: where one of these has changed, going on would not be the same run."""

    corpus: str
    """Fingerprint of the tokens and written masks of all splits."""
    glossary: str | None
    """Fingerprint of the terms, of their weights, and of where they were found."""
    base: str
    """Fingerprint of the base's weights and configuration."""
    tokenizer: str
    config: dict[str, Any]
    """Every setting with a bearing on the result."""

    def changes_since(self, earlier: dict[str, Any]) -> list[str]:
        """What differs from the record of an earlier run, in words."""
        now = json.loads(json.dumps(asdict(self)))
        changes = [
            f"the {name} has changed since the run was started"
            for name in ("corpus", "glossary", "base", "tokenizer")
            if now[name] != earlier.get(name)
        ]
        return changes + list(_different("", earlier.get("config", {}), now["config"]))


class RunDirectory:
    """`runs/<domain>/`: `run.json`, and `checkpoint-<step>/` for the newest and the best steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, identity: RunIdentity) -> None:
        """Begin a run here; the one that was here before is moved aside, not lost.

        Raises:
            RefineError: the place can't be written to.
        """
        if self.checkpoints():
            self._move_aside()
        self.clear_leftovers()
        write_file(self.path / _RECORD, (json.dumps(asdict(identity), indent=2) + "\n").encode())

    def resume(self, identity: RunIdentity) -> Path | None:
        """The newest undamaged checkpoint, once it is sure that it is of this very run; None if there is none yet.

        Raises:
            RefineError: there is no run here, or it was another one; the message says what differs. Or the checkpoint
                of the best step so far is damaged or gone.
        """
        try:
            record = json.loads((self.path / _RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RefineError(f"nothing to resume: {self.path} holds no run; train without resuming") from None
        except OSError as error:
            raise RefineError(f"{self.path / _RECORD} can't be read: {error.strerror}; see to it and resume") from None
        except ValueError:
            record = None
        if not (isinstance(record, dict) and isinstance(record.get("config"), dict)):
            raise RefineError(f"{self.path / _RECORD} is broken; train without resuming")
        changes = identity.changes_since(record)
        if changes:
            raise RefineError(
                f"{self.path} can't be resumed: {'; '.join(changes)}; put it back, or train without resuming"
            )
        for checkpoint in reversed(self.checkpoints()):
            if _is_whole(checkpoint):
                best = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["best_global_step"]
                if best is not None and not _is_whole(self.checkpoint(best)):
                    raise RefineError(
                        f"{self.checkpoint(best)}, the best so far, is damaged or gone; train without resuming"
                    )
                return checkpoint
            logger.warning("%s is damaged: going on from before it", checkpoint)
        return None

    def record(self) -> bytes | None:
        """What `run.json` holds, if there is one."""
        record = self.path / _RECORD
        return record.read_bytes() if record.is_file() else None

    def continue_from(self, other: RunDirectory, record: bytes | None, best: int | None) -> bool:
        """Become the run of `record`, whose place `other` takes no more, with its checkpoint of step `best`.

        Returns:
            Whether that checkpoint could be had.

        Raises:
            RefineError: this place can't be written to either.
        """
        if self.checkpoints():
            self._move_aside()
        if record is not None:
            write_file(self.path / _RECORD, record)
        self.path.mkdir(parents=True, exist_ok=True)
        if best is None or not _is_whole(other.checkpoint(best)):
            return False
        with self.write(best) as staged:
            shutil.copytree(other.checkpoint(best), staged, dirs_exist_ok=True)
        return True

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [path.parent for path in self.path.glob(f"checkpoint-*/{_STATE}")]
        return sorted((path for path in found if _CHECKPOINT.fullmatch(path.name)), key=_step)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of `step` lies or will lie."""
        return self.path / f"checkpoint-{step}"

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """Give an empty directory that becomes the checkpoint of `step` when all is written and flushed.

        Raises:
            RefineError: the run's directory was removed, or takes no more; earlier checkpoints are as they were.
        """
        if not self.path.is_dir():
            raise RefineError(f"{self.path} was removed while the run was going on: nothing can be saved there")
        with atomic_directory(self.checkpoint(step)) as staged:
            yield staged
            files = {file.name: fingerprint_files([file]) for file in staged.iterdir() if file.name != _FINGERPRINTS}
            (staged / _FINGERPRINTS).write_text(json.dumps(files), encoding="utf-8")

    def keep_only(self, limit: int, *, newest: int, best: int | None) -> None:
        """Remove the oldest checkpoints until `limit` are left, never those of the steps `newest` and `best`.

        One of a later step than `newest` is damaged: the run went on from before it.
        """
        found = self.checkpoints()
        spare = [path for path in found if _step(path) not in (newest, best)]
        for path in spare[: max(0, len(found) - limit)]:
            try:
                remove_directory(path)
            except OSError as error:  # a file that another program holds open on Windows, say
                logger.warning("%s is no longer needed, but can't be removed: %s", path, error.strerror)

    def _move_aside(self) -> None:
        aside = self.path.with_name(f".{self.path.name}.previous")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            self.path.rename(aside)
        except OSError as error:
            raise RefineError(f"{self.path} can't be moved aside: {error.strerror}; move or remove it") from None
        logger.warning("the earlier run in %s was moved to %s", self.path, aside)

    def clear_leftovers(self) -> None:
        """Remove what a writer that was killed has left of checkpoints that never were, or were no more."""
        for left in self.path.glob(".checkpoint-*"):
            if _LEFT.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)


def _is_whole(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are there as they were written."""
    try:
        files = json.loads((checkpoint / _FINGERPRINTS).read_text(encoding="utf-8"))
        if not isinstance(files, dict) or _STATE not in files:
            return False
        return all(fingerprint_files([checkpoint / name]) == expected for name, expected in files.items())
    except (OSError, ValueError):
        return False


def fingerprint_splits(splits: DatasetDict) -> tuple[str, str]:
    """Fingerprints of the passages, and of the terms found in them, of all splits; of values, not of files."""
    tokens, terms = hashlib.sha256(), hashlib.sha256()
    passages = ["ids", "word_starts", "context_tokens", "masked"]
    for name in sorted(splits):
        for digest, columns in ((tokens, passages), (terms, ["term_spans"])):
            digest.update(f"{name} {len(splits[name])}\n".encode())
            for table in splits[name].select_columns(columns).with_format("arrow").iter(batch_size=1000):
                for column in columns:
                    _digest_values(digest, table[column].combine_chunks())
    return tokens.hexdigest()[:16], terms.hexdigest()[:16]


def fingerprint_values(values: Any) -> str:
    """Of what JSON can hold, or tells by its name, a dtype say; dictionaries in any order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_state(path: Path, state: Any) -> None:
    """Write what `torch.load` reads.

    Raises:
        OSError: the disk takes no more (torch's own writer would raise an error without the reason).
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())


def _digest_values(digest: Any, array: pa.Array) -> None:
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), -1)  # no list is not an empty one
        digest.update(np.asarray(lengths, dtype=np.int64).tobytes())
        array = array.flatten()
    digest.update(np.asarray(array, dtype=np.int64).tobytes())


def _different(prefix: str, was: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in sorted({*was, *now}):
        before, after = was.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _different(f"{prefix}{name}.", before, after)
        elif before != after:
            yield f"{prefix}{name} was {before!r} and is now {after!r}"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
