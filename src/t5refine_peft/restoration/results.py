"""What restoration gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """An answer to a gap and its probability, from 0 to 1, calibrated where the adapter's card has a temperature."""

    text: str
    score: float


@dataclass(frozen=True)
class RestoredGap:
    """A gap and what came of it: `start` and `end` are characters of the restored text, `text` is what stands there.

    Attributes:
        start: first character.
        end: character behind the last.
        text: the answer with the spaces it needs, or what stood there where the gap was left open.
        score: of the best answer, from 0 to 1.
        candidates: the answers: the best first, the others by score.
        found: whether the gap was found as damage rather than given.
        open: whether the gap was left open, since its score was below the least one asked for.
    """

    start: int
    end: int
    text: str
    score: float
    candidates: tuple[Candidate, ...]
    found: bool = False
    open: bool = False


@dataclass(frozen=True)
class Restoration:
    """A text with its gaps filled; everything outside the gaps is the user's, to the character."""

    text: str
    gaps: tuple[RestoredGap, ...]
    source_lengths: tuple[int, ...] = ()
    """How many characters stood in each gap before."""

    def as_object(self) -> dict[str, Any]:
        """As JSON has it; offsets in characters of the restored text."""
        return {
            "text": self.text,
            "gaps": [
                {
                    "start": gap.start,
                    "end": gap.end,
                    "text": gap.text,
                    "score": round(gap.score, 6),
                    "found": gap.found,
                    "open": gap.open,
                    "candidates": [{"text": c.text, "score": round(c.score, 6)} for c in gap.candidates],
                }
                for gap in self.gaps
            ],
        }
