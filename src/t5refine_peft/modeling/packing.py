"""Passages without padding: flat tokens for whatever works token by token, packed rows for attention, exactly.

T5's position bias depends on the distance of two tokens alone, so that a passage may stand anywhere in a row as long as
no other passage in that row is seen from it. A mask sees to that; nothing else has to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_ALIGNMENT = 8
"""GPU attention wants masks whose rows begin at multiples of 16 bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Where the flat tokens of several passages stand in rows."""

    count: int
    """Of rows."""
    width: int
    """Places in a row."""
    passages: torch.Tensor
    """(count, width) int64: the number of the passage whose token stands there, -1 where none does."""
    tokens: torch.Tensor
    """(count, width) int64: the flat number of the token that stands there, 0 where none does."""
    places: torch.Tensor
    """(tokens,) int64: the place of each flat token, counted through all rows."""
    empty: torch.Tensor
    """(places without a token,) int64, counted likewise."""
    is_full: bool
    """Whether each row is one passage and no place is empty, so that nothing has to be masked."""

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        return Rows(
            count=self.count,
            width=self.width,
            passages=self.passages.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            places=self.places.to(device, non_blocking=True),
            empty=self.empty.to(device, non_blocking=True),
            is_full=self.is_full,
        )


def pack(input_lengths: Sequence[int], label_lengths: Sequence[int]) -> tuple[Rows, Rows]:
    """Put passages into rows as wide as the longest: rows of inputs, and in the same order rows of labels.

    First fit, longest first (Johnson 1973: at most 11/9 of the fewest rows). A row of that width never costs attention
    more than a padded batch does.

    Args:
        input_lengths: tokens of each passage's input.
        label_lengths: tokens of each passage's labels.
    """
    capacity = max(input_lengths), max(label_lengths)
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []
    for passage in sorted(range(len(input_lengths)), key=lambda number: -input_lengths[number]):
        inputs, labels = input_lengths[passage], label_lengths[passage]
        fitting = (row for row, free in enumerate(left) if inputs <= free[0] and labels <= free[1])
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            left.append(capacity)
        rows[row].append(passage)
        left[row] = left[row][0] - inputs, left[row][1] - labels
    return _lay_out(rows, input_lengths), _lay_out(rows, label_lengths)


def _lay_out(rows: list[list[int]], lengths: Sequence[int]) -> Rows:
    """Place the passages of each row one after the other."""
    width = -(-max(lengths) // _ALIGNMENT) * _ALIGNMENT
    starts = np.concatenate([[0], np.cumsum(lengths)])
    passages = np.full((len(rows), width), -1, dtype=np.int64)
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    places = np.empty(starts[-1], dtype=np.int64)
    for row, members in enumerate(rows):
        at = 0
        for passage in members:
            length, start = lengths[passage], starts[passage]
            passages[row, at : at + length] = passage
            tokens[row, at : at + length] = np.arange(start, start + length)
            places[start : start + length] = np.arange(row * width + at, row * width + at + length)
            at += length
    return Rows(
        count=len(rows),
        width=width,
        passages=torch.from_numpy(passages),
        tokens=torch.from_numpy(tokens),
        places=torch.from_numpy(places),
        empty=torch.from_numpy(np.flatnonzero(passages < 0)),
        is_full=all(length == width for length in lengths),
    )


def visible(queries: Rows, keys: Rows, *, causal: bool) -> torch.Tensor | None:
    """Which keys a query sees: those of its own passage, and if `causal` none behind itself.

    Returns:
        (rows, query places, key places) bool, or None where every query sees every key.
    """
    if not causal and queries.is_full and keys.is_full:
        return None
    # An empty place is of no passage, that of a query of another none than that of a key: so it sees nothing.
    same = (queries.passages[:, :, None] == keys.passages[:, None, :]) & (keys.passages >= 0)[:, None, :]
    if causal:
        same &= torch.ones(queries.width, keys.width, dtype=torch.bool, device=same.device).tril()
    return same


class HeadMoves:
    """Moves flat (tokens, heads * width of a head) into rows of heads and back, both ways by one selection of rows."""

    def __init__(self, rows: Rows, heads: int) -> None:
        """Prepare the moves between flat tokens and `rows` for `heads` heads."""
        self.rows = rows
        self.heads = heads
        head = torch.arange(heads, device=rows.tokens.device)
        self._into = (rows.tokens[:, None, :] * heads + head[:, None]).flatten()
        self._out = self._of_each_head(rows.places, head)
        self._empty = self._of_each_head(rows.empty, head)

    def _of_each_head(self, places: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """The places of (rows, places) in (rows, heads, places), for each place one head after the other."""
        row, column = places // self.rows.width, places % self.rows.width
        return ((row[:, None] * self.heads + head) * self.rows.width + column[:, None]).flatten()

    def into_rows(self, flat: torch.Tensor) -> torch.Tensor:
        """(tokens, heads * width) to (rows, heads, places, width); an empty place holds any token."""
        return _IntoRows.apply(flat, self)  # type: ignore[no-any-return, no-untyped-call]

    def out_of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, heads, places, width) to (tokens, heads * width)."""
        return _OutOfRows.apply(rows, self)  # type: ignore[no-any-return, no-untyped-call]

    def gather(self, flat: torch.Tensor) -> torch.Tensor:
        """`into_rows` on values alone."""
        moved = flat.reshape(-1, flat.shape[-1] // self.heads).index_select(0, self._into)
        return moved.view(self.rows.count, self.heads, self.rows.width, -1)

    def scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """`out_of_rows` on values alone."""
        width = rows.shape[-1]
        return rows.reshape(-1, width).index_select(0, self._out).view(-1, self.heads * width)

    def clear_empty(self, rows: torch.Tensor) -> torch.Tensor:
        """Put zeros on the empty places, in place."""
        rows.view(-1, rows.shape[-1]).index_fill_(0, self._empty, 0)
        return rows


class _IntoRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: torch.Tensor, moves: HeadMoves) -> torch.Tensor:
        ctx.moves = moves
        return moves.gather(flat)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.moves.scatter(gradients[0]), None


class _OutOfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, moves: HeadMoves) -> torch.Tensor:
        ctx.moves = moves
        return moves.scatter(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        moves: HeadMoves = ctx.moves
        return moves.clear_empty(moves.gather(gradients[0])), None
