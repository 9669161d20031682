"""Take lines from a stream as they arrive, so that each is answered while the stream is still open."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

from t5refine_peft.corpus.chunks import HasText

_Item = TypeVar("_Item", bound=HasText)
_WAIT_SECONDS = 0.1
"""How long a reader that nobody listens to any more may go on waiting for room."""


class _End:
    """The stream ended, by itself or with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


def arriving(lines: Iterable[_Item], *, characters: int, count: int) -> Iterator[list[_Item]]:
    """Yield what has arrived, in order: at least a line, at most `count`, ended once it holds `characters` of text.

    A thread reads ahead by at most `count` lines. What `lines` raises is raised here, behind the lines before.
    """
    queue: Queue[_Item | _End] = Queue(maxsize=count)
    left = threading.Event()
    # Nothing can wake a thread out of a read: it must not keep the program alive once that is over.
    threading.Thread(target=_read, args=(lines, queue, left), daemon=True).start()
    item: _Item | _End
    try:
        while not isinstance(item := queue.get(), _End):
            chunk = [item]
            size = len(item.text)
            while len(chunk) < count and size < characters:
                try:
                    item = queue.get_nowait()
                except Empty:
                    break
                if isinstance(item, _End):
                    break
                chunk.append(item)
                size += len(item.text)
            yield chunk
            if isinstance(item, _End):
                break
        if item.error is not None:
            raise item.error
    finally:
        left.set()


def _read(lines: Iterable[_Item], queue: Queue[_Item | _End], left: threading.Event) -> None:
    try:
        for line in lines:
            if not _put(queue, line, left):
                return
    except Exception as error:  # it is the listener's to handle
        _put(queue, _End(error), left)
    else:
        _put(queue, _End(), left)


def _put(queue: Queue[_Item | _End], item: _Item | _End, left: threading.Event) -> bool:
    """Whether the item was put before the listener left."""
    while not left.is_set():
        try:
            queue.put(item, timeout=_WAIT_SECONDS)
        except Full:
            continue
        return True
    return False
