"""Long work cut into parts that are each done once: by one process or several, over any number of starts."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
import filelock
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from t5refine_peft.errors import RefineError
from t5refine_peft.storage import atomic_file, remove_unfinished

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_parts(work: Callable[[Task], Result], tasks: Iterable[Task], *, processes: int) -> Iterator[Result]:
    """Yield `work(task)` for each task, in order; tasks are drawn as they are needed, so that few are in memory.

    Args:
        work: done in other processes where there are more than one; then it, its tasks and its results are pickled.
        tasks: any number.
        processes: one works in this process.

    On an exception, Ctrl+C too, the parts that have begun are finished first, so that what they write stays.

    Raises:
        RefineError: a process was ended from outside.
    """
    if processes == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(processes, _context(), _Worker.start, (work,)) as pool:
        pending: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                pending.append(pool.submit(_Worker.do, task))
                if len(pending) > 2 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise RefineError(
                "a process that prepared a part was ended, mostly for want of memory: start again with fewer "
                "processes; the parts that are done stay"
            ) from None
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def made_once(directory: Path) -> Iterator[Path | None]:
    """Give a hidden directory beside `directory` to make it in, or None if it is there already.

    What an interrupted call left in the hidden directory is kept for the next; after a `RefineError`, which would come
    again, it is removed. Of several processes that ask for one directory, as in distributed training, one makes it
    while the others wait.
    """
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    with filelock.FileLock(directory.with_name(f".{directory.name}.lock")):
        if directory.exists():
            yield None
            return
        unfinished.mkdir(exist_ok=True)
        remove_unfinished(unfinished)
        try:
            yield unfinished
        except RefineError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        unfinished.rename(directory)


def write_part(path: Path, table: pa.Table, features: datasets.Features) -> None:
    """Write a table as an Arrow file that `datasets` reads; a reader sees all of it or nothing."""
    with atomic_file(path) as temporary, ArrowWriter(path=str(temporary), features=features) as writer:
        writer.write_table(table)
        writer.finalize()


class _Worker:
    """What a worker process does; handed over once, since vocabulary and glossary are large."""

    work: Callable[[Any], Any]

    @classmethod
    def start(cls, work: Callable[[Any], Any]) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's to answer
        threading.Thread(target=_end_with_parent, daemon=True).start()
        cls.work = work

    @classmethod
    def do(cls, task: Any) -> Any:
        return cls.work(task)


def _end_with_parent() -> None:
    """End this process when its parent was killed; it would wait for work for ever, and hold its memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context() -> multiprocessing.context.BaseContext:
    """Forked where the system can, as `datasets` does: a user's script then needs no main guard."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if "fork" in methods else "spawn")
