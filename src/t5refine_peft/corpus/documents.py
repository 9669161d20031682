"""What reading gives: documents, and an account of how they were read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Unit = Literal["line", "paragraphs", "file"]
"""What a document is in a file of running text: a line, a run of paragraphs between blank lines, or the whole file."""

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """A text and where it is from.

    Attributes:
        source: file and line, or the number in an iterable.
        text: the whole text, its masked parts put back.
        masked: character ranges that a written pair of inputs and targets masks, in order; None for plain text, which
            is masked afresh in each epoch.
        split: the split that the file's name says; None where it says none.
    """

    source: str
    text: str
    masked: tuple[tuple[int, int], ...] | None = None
    split: Split | None = None


@dataclass
class ReadingReport:
    """What a user should know of how a corpus was read; filled while it is read."""

    files: int = 0
    encodings: dict[str, str] = field(default_factory=dict)
    """Files that are not UTF-8, with the encoding that was found."""
    without_text: list[str] = field(default_factory=list)
    """Files that gave no text: empty, or a scan."""
    other_files: Counter[str] = field(default_factory=Counter)
    """Files in folders that were passed over, by suffix."""
    unusable_pairs: int = 0
    """Pairs of inputs and targets whose sentinels don't answer each other; left out."""
    first_unusable_pair: str | None = None
    """Where the first of them is, and what is wrong with it."""

    def leave_out_pair(self, where: str, fault: str) -> None:
        """Count a pair that can't be used, and keep the first one's fault."""
        self.unusable_pairs += 1
        self.first_unusable_pair = self.first_unusable_pair or f"{where}: {fault}"

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ReadingReport:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "other_files": Counter(values["other_files"])})

    def messages(self) -> list[str]:
        """What is out of the ordinary, a sentence each."""
        found = [f"{path} is not UTF-8: read as {encoding}" for path, encoding in self.encodings.items()]
        found += [f"{path} gave no text (empty, or a scan without a text layer)" for path in self.without_text]
        if self.other_files:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in self.other_files.items())
            found.append(f"files of other kinds were passed over: {kinds}")
        if self.unusable_pairs:
            found.append(f"{self.unusable_pairs} pairs were left out; the first is {self.first_unusable_pair}")
        return found


def split_of_file(path: Path) -> Split | None:
    """The split that a file of pairs declares by its name, as the predecessors' `train.jsonl` and `valid.jsonl` do."""
    names: dict[str, Split] = {
        "train": "train",
        "valid": "validation",
        "validation": "validation",
        "dev": "validation",
        "test": "test",
    }
    return names.get(path.stem.lower())
