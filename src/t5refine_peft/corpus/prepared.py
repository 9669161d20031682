"""A prepared dataset on disk: what `datasets.load_from_disk` reads, and beside it what it was made of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets

from t5refine_peft.corpus.documents import SPLITS, Split
from t5refine_peft.corpus.pairs import LONGEST_INPUT, LONGEST_TARGET
from t5refine_peft.errors import RefineError
from t5refine_peft.storage import atomic_directory, atomic_file

SUMMARY_FILE = "prepared.json"
_STATE_FILE = "state.json"
_DATASETS_FILE = "dataset_dict.json"


@dataclass(frozen=True, kw_only=True)
class PreparationSummary:
    """What a prepared dataset was made of, and what it holds."""

    documents: dict[Split, int]
    """Documents that gave a passage."""
    passages: dict[Split, int]
    tokens: dict[Split, int]
    term_occurrences: dict[Split, int]
    term_counts: dict[str, int]
    """Occurrences in all splits, by term; terms that never occur are left out."""
    duplicates: int
    """Documents that equalled an earlier one, dropped."""
    near_duplicates: int
    """Training documents that nearly equalled a test document, dropped."""
    without_passage: int
    """Documents too short to learn from."""
    long_pairs: int
    """Written pairs that are too long to train on."""
    messages: list[str] = field(default_factory=list)
    """What was out of the ordinary in reading, a sentence each."""
    max_tokens: int
    context_tokens: int
    vocabulary_fingerprint: str
    glossary_fingerprint: str | None

    def notices(self) -> list[str]:
        """What a user should know, a sentence each: what was out of the ordinary in reading, and what was left out."""
        notices = list(self.messages)
        if self.duplicates:
            notices.append(f"{self.duplicates:,} documents equal an earlier one: left out")
        if self.near_duplicates:
            notices.append(f"{self.near_duplicates:,} training documents nearly equal a test document: left out")
        if self.without_passage:
            notices.append(f"{self.without_passage:,} documents are too short to learn from: left out")
        if self.long_pairs:
            limits = f"{LONGEST_INPUT} tokens of inputs or {LONGEST_TARGET} of targets"
            notices.append(f"{self.long_pairs:,} pairs have more than {limits}: left out")
        return notices


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset.

    Attributes:
        directory: where it lies.
        splits: `train`, `validation` and `test`; see `prepare_dataset`.
        summary: what it was made of.
    """

    directory: Path
    splits: datasets.DatasetDict
    summary: PreparationSummary

    def save(self, target: Path) -> None:
        """Put the dataset at `target` as well, without copying where the file system can link.

        Raises:
            RefineError: something lies there that is no prepared dataset, or it can't be written to.
        """
        if target.exists() and not is_prepared(target) and (not target.is_dir() or any(target.iterdir())):
            raise RefineError(f"{target} is there already and is no prepared dataset; choose another --output")
        with atomic_directory(target) as staged:
            shutil.copytree(self.directory, staged, copy_function=_link_or_copy, dirs_exist_ok=True)


def is_prepared(path: Path) -> bool:
    """Whether a prepared dataset lies at `path`."""
    return (path / SUMMARY_FILE).is_file()


def load_prepared(directory: Path) -> Prepared:
    """Open a prepared dataset; its files are mapped, not read.

    Raises:
        RefineError: a file of it is missing or broken.
    """
    try:
        summary = PreparationSummary(**json.loads((directory / SUMMARY_FILE).read_text(encoding="utf-8")))
        splits = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, TypeError) as error:
        raise RefineError(f"{directory} is no whole prepared dataset ({error}); prepare the corpus anew") from None
    return Prepared(directory, splits, summary)


def finish_dataset(
    directory: Path,
    files: Mapping[Split, Sequence[Path]],
    summary: PreparationSummary,
    *,
    features: datasets.Features,
    fingerprint: str,
) -> None:
    """Make a directory of Arrow files, `<split>/*.arrow`, one that `datasets.load_from_disk` reads."""
    for split in SPLITS:
        datasets.DatasetInfo(features=features).write_to_directory(str(directory / split))
        state: dict[str, Any] = {
            "_data_files": [{"filename": file.name} for file in files[split]],
            "_fingerprint": f"{fingerprint}{split}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        _write(directory / split / _STATE_FILE, json.dumps(state))
    _write(directory / _DATASETS_FILE, json.dumps({"splits": list(SPLITS)}))
    _write(directory / SUMMARY_FILE, json.dumps(asdict(summary), ensure_ascii=False, indent=1))


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
