"""Windows of about one cost in batches of a token budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from t5refine_peft.errors import RefineError
from t5refine_peft.restoration.windows import Window


def make_batches(
    windows: Sequence[Window], *, batch_tokens: int, kinds: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Cut windows into batches of at most `batch_tokens` tokens, padding counted; a longer window stands alone.

    Sorted by what decides the time: first the number of gaps, since a batch decodes until its last gap is answered,
    then the length, so that little is padding.

    Args:
        windows: in any order.
        batch_tokens: budget of a batch.
        kinds: of each window; those of different kinds don't share a batch.

    Returns:
        Batches of numbers of windows; each number is in one of them.
    """
    if batch_tokens < 1:
        raise RefineError(f"batch_tokens must be at least 1, found {batch_tokens}")
    kinds = kinds if kinds is not None else [None] * len(windows)
    first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
    order = sorted(
        range(len(windows)),
        key=lambda n: (first[kinds[n]], len(windows[n].covered), len(windows[n].input_ids)),
    )
    batches: list[list[int]] = []
    width = 0
    for number in order:
        length = len(windows[number].input_ids)
        same = bool(batches) and kinds[batches[-1][0]] == kinds[number]
        if not same or max(width, length) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            width = 0
        batches[-1].append(number)
        width = max(width, length)
    return batches
