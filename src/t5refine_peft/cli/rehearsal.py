"""What `t5refine train --dry-run` tells, as text or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from t5refine_peft.cli.audit import passage_lines
from t5refine_peft.cli.plan import plan_as_json, plan_lines

if TYPE_CHECKING:
    from t5refine_peft.training.rehearsal import Rehearsal


def rehearsal_lines(found: Rehearsal) -> Iterator[str]:
    """Passages, memory and time."""
    yield "masked as in an evaluation: [...] is masked, *...* is a term"
    for passage in found.passages:
        yield from passage_lines(passage)
    yield "\nmemory, planned"
    yield from plan_lines(found.plan)
    yield f"  {'measured':16}{found.memory_bytes / 2**20:10.1f} MiB"
    yield f"\ntime, from the {len(found.step_seconds)} steps that were done (loss {found.loss:.3f})"
    yield f"  {'steps':16}{found.steps:8,} of {found.seconds_a_step:8.3f} s"
    yield f"  {'evaluations':16}{found.evaluations:8,} of {found.evaluation_seconds:8.3f} s"
    yield f"  {'in all':16}{timedelta(seconds=round(found.total_seconds))!s:>8}, if nothing stops it early"
    yield "nothing was written"


def rehearsal_as_json(found: Rehearsal) -> dict[str, Any]:
    """The same, for a program."""
    return {**asdict(found), "plan": plan_as_json(found.plan), "total_seconds": found.total_seconds}
