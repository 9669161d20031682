"""A Trainer's log, read as curves, phases of early stopping and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Phase:
    """Steps `start` to `end`, in which early stopping was in the phase `name`: early, middle or late."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Verdict:
    """What early stopping said of an evaluation."""

    step: int
    phase: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TrainingHistory:
    """What a run's log says.

    Attributes:
        curves: (step, value) of each number that was logged more than once, by the Trainer's own names: `loss` of
            training, `eval_loss`, `eval_term_exact_match`, ...
        phases: the phases of early stopping, in order, without gaps.
        verdicts: one for each evaluation that was judged.
        best_step: the step whose weights were kept, where it is known.
    """

    curves: Mapping[str, Sequence[tuple[int, float]]]
    phases: tuple[Phase, ...]
    verdicts: tuple[Verdict, ...]
    best_step: int | None

    @classmethod
    def of(cls, log_history: Sequence[Mapping[str, Any]], *, best_step: int | None = None) -> TrainingHistory:
        """Read `state.log_history` of a Trainer; entries with `stopping_phase` are early stopping's."""
        curves: dict[str, list[tuple[int, float]]] = {}
        verdicts = []
        phases: list[Phase] = []
        for entry in log_history:
            step = int(entry.get("step", 0))
            if "stopping_phase" in entry:
                name = str(entry["stopping_phase"])
                verdicts.append(Verdict(step, name, str(entry.get("stopping_reason", ""))))
                if phases and phases[-1].name == name:
                    phases[-1] = Phase(name, phases[-1].start, step)
                else:
                    phases.append(Phase(name, phases[-1].end if phases else 0, step))
                continue
            for key, value in entry.items():
                if key == "loss" or key.startswith("eval_"):
                    curves.setdefault(key, []).append((step, float(value)))
        drawn = {key: points for key, points in curves.items() if len(points) > 1}
        return cls(curves=drawn, phases=tuple(phases), verdicts=tuple(verdicts), best_step=best_step)
