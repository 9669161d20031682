"""A stream of texts in lists of about one size, so that what is done for many at once takes bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class HasText(Protocol):
    """What is counted by its text."""

    @property
    def text(self) -> str:
        """The text."""


_Item = TypeVar("_Item", bound=HasText)


def in_chunks(items: Iterable[_Item], *, characters: int, count: int | None = None) -> Iterator[list[_Item]]:
    """Yield `items` in order, in lists that end as soon as they hold so many characters of text, or `count` items."""
    chunk: list[_Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.text)
        if size >= characters or len(chunk) == count:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
