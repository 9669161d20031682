from __future__ import annotations

import os
import select
import signal
import threading
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from t5refine_peft import RefineError
from t5refine_peft.corpus.parts import made_once, run_parts, write_part


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))
    return number * number, os.getpid()


def end_itself(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def fail(number: int) -> int:
    raise RefineError(f"part {number} is broken")


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_tasks_are_drawn_as_needed(processes: int):
    drawn: list[int] = []
    results = run_parts(square, (drawn.append(n) or n for n in range(40)), processes=processes)
    found = [next(results) for _ in range(10)]
    assert len(drawn) <= 10 + 2 * processes + 1
    found += results
    assert [number for number, _ in found] == [n * n for n in range(40)]
    assert (os.getpid() in {process for _, process in found}) == (processes == 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_users_mistake_is_told_as_it_is(processes: int):
    with pytest.raises(RefineError, match="part 0 is broken"):
        list(run_parts(fail, range(5), processes=processes))


def test_a_process_that_was_ended_is_told_with_a_remedy():
    with pytest.raises(RefineError, match="start again with fewer processes"):
        list(run_parts(end_itself, range(20), processes=2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="stands in for a killed process with a fork of this one")
def test_workers_end_when_their_parent_is_killed():
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:  # never returns to the tests
        try:
            for number, process in run_parts(square, range(1000), processes=2):
                os.write(writing, f"{process} ".encode())
                if number == 9 * 9:
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == -signal.SIGKILL
    os.close(writing)  # the workers hold the last ends of the pipe: it ends when both have ended
    told = b""
    while select.select([reading], [], [], 20)[0]:
        told += (more := os.read(reading, 4096))
        if not more:
            break
    else:
        pytest.fail("the workers outlive their parent")
    assert len(set(told.split())) == 2
    os.close(reading)


def test_a_part_is_whole_or_not_there(tmp_path: Path):
    features = datasets.Features({"n": datasets.Value("uint16")})
    write_part(tmp_path / "a.arrow", pa.table({"n": [1, 2]}, schema=features.arrow_schema), features)
    assert datasets.Dataset.from_file(str(tmp_path / "a.arrow"))["n"][:] == [1, 2]
    with pytest.raises(datasets.table.CastError):
        write_part(tmp_path / "b.arrow", pa.table({"m": ["x"]}), features)
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrow"]


def test_a_directory_is_made_by_one_while_the_others_wait(tmp_path: Path):
    made: list[int] = []

    def make(number: int) -> None:
        with made_once(tmp_path / "there") as unfinished:
            if unfinished is not None:
                made.append(number)
                time.sleep(0.1)
                (unfinished / "a").write_text("a")
        assert (tmp_path / "there" / "a").read_text() == "a"

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, True), (RefineError, False)])
def test_what_was_interrupted_is_kept_and_what_failed_is_not(tmp_path: Path, error: type[BaseException], kept: bool):
    def cut_off() -> None:
        with made_once(tmp_path / "there") as unfinished:
            (unfinished / "a").write_text("a")
            (unfinished / ".b.99.part").write_text("half of b")
            raise error

    with pytest.raises(error):
        cut_off()
    assert not (tmp_path / "there").exists()
    with made_once(tmp_path / "there") as unfinished:
        assert [path.name for path in unfinished.iterdir()] == ["a"] * kept
