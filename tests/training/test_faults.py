"""Disks that are full or read-only, directories that go away: nothing earlier is lost, and one sentence says so."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from runs import AtEvent, same, train_tiny, weights

from t5refine_peft import RefineError
from t5refine_peft.storage import check_writable, remove_directory, write_file
from t5refine_peft.training import trainer
from t5refine_peft.training.checkpoints import RunDirectory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = sys.platform == "linux" and shutil.which("mount")
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_stops_the_run_which_goes_on_when_there_is_space(
    tiny_base, corpus, terms, tmp_path, small_disk
):
    train_tiny(tiny_base, corpus, terms, tmp_path / "whole")
    before: dict[str, bytes] = {}

    def fill() -> None:
        before.update(files(small_disk))
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass

    options = {"runs_dir": small_disk}
    with pytest.raises(RefineError, match=r"checkpoint-6 can't be written: No space left .*; what was there is unchan"):
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[AtEvent("on_step_end", 5, fill)], **options)
    (small_disk / "filler").unlink()
    assert files(small_disk) == before
    assert {path.split("/")[1] for path in before} == {"run.json", "checkpoint-3", "checkpoint-4"}
    train_tiny(tiny_base, corpus, terms, tmp_path, resume=True, **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path))


def test_the_state_in_memory_is_saved_in_the_place_that_was_given(tiny_base, corpus, terms, tmp_path, monkeypatch):
    train_tiny(tiny_base, corpus, terms, tmp_path / "whole")
    real = trainer.write_state

    def write_state(path: Path, state: object) -> None:
        if "runs" in path.parts:
            no_space()
        real(path, state)

    full = AtEvent("on_step_end", 5, lambda: monkeypatch.setattr(trainer, "write_state", write_state))
    with pytest.raises(RefineError) as raised:
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[full], rescue_dir=tmp_path / "rescue")
    assert "checkpoint-6 can't be written: No space left on device" in str(raised.value)
    assert f"the state after step 6 was saved in {tmp_path / 'rescue' / 'heart'}" in str(raised.value)
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "rescue" / "heart").iterdir()} == {
        "run.json", "checkpoint-4", "checkpoint-6",
    }  # fmt: skip
    train_tiny(tiny_base, corpus, terms, tmp_path, runs_dir=tmp_path / "rescue", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path))


def test_a_rescue_place_that_is_full_too_is_told_with_the_first(tiny_base, corpus, terms, tmp_path, monkeypatch):
    full = AtEvent("on_step_end", 5, lambda: monkeypatch.setattr(trainer, "write_state", no_space))
    with pytest.raises(RefineError) as raised:
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[full], rescue_dir=tmp_path / "rescue")
    first, second = str(raised.value).split("; nor could the state be saved elsewhere: ")
    assert first.startswith(f"{tmp_path / 'runs' / 'heart' / 'checkpoint-6'} can't be written: No space left on device")
    assert second.startswith(f"{tmp_path / 'rescue' / 'heart' / 'checkpoint-6'} can't be written: No space left on")


def test_a_run_whose_directory_goes_away_stops_and_leaves_the_earlier_adapter(tiny_base, corpus, terms, tmp_path):
    train_tiny(tiny_base, corpus, terms, tmp_path, config={"max_steps": 2, "eval_steps": 2})
    earlier = files(tmp_path / "adapters")
    gone = AtEvent("on_step_end", 5, lambda: shutil.rmtree(tmp_path / "runs"))
    with pytest.raises(RefineError, match=r"runs/heart was removed while the run was going on"):
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[gone], rescue_dir=tmp_path / "rescue")
    assert files(tmp_path / "adapters") == earlier
    train_tiny(tiny_base, corpus, terms, tmp_path, runs_dir=tmp_path / "rescue", resume=True)
    assert files(tmp_path / "adapters") != earlier


def test_an_adapter_that_cant_be_written_leaves_the_earlier_one_and_the_checkpoints(
    tiny_base, corpus, terms, tmp_path, monkeypatch
):
    train_tiny(tiny_base, corpus, terms, tmp_path, config={"max_steps": 2, "eval_steps": 2})
    earlier = files(tmp_path / "adapters")
    full = AtEvent("on_train_end", 12, lambda: monkeypatch.setattr(Path, "write_bytes", no_space))
    with pytest.raises(RefineError, match=r"adapters/heart can't be written: No space left .*; what was there is unch"):
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[full])
    monkeypatch.undo()
    assert files(tmp_path / "adapters") == earlier
    train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert files(tmp_path / "adapters") != earlier


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that can't be written to, for root neither."""
    place = tmp_path / "read-only"
    place.mkdir()
    place.chmod(0o555)
    if os.geteuid():
        yield place
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=False).returncode:
        pytest.skip("root writes anywhere, and nothing can be mounted here")
    else:
        yield place
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
@pytest.mark.parametrize("where", ["adapters_dir", "runs_dir"])
def test_an_unwritable_place_is_told_before_any_work(tiny_base, corpus, terms, tmp_path, read_only, where):
    with pytest.raises(RefineError, match=r"read-only.* can't be written: .*; choose another directory"):
        train_tiny(tiny_base, corpus, terms, tmp_path, **{where: read_only / "x"})


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_the_command_ends_with_1_and_one_sentence(tiny_base, corpus, terms, tmp_path):
    import resource

    (tmp_path / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    (tmp_path / "terms.txt").write_text("\n".join(terms), encoding="utf-8")
    command = [
        sys.executable, "-c", "from t5refine_peft.cli.app import main; main()",
        "train", "corpus.txt", "--terms", "terms.txt", "--domain", "heart", "--base", str(tiny_base),
        "--max-steps", "2", "--device", "cpu",
    ]  # fmt: skip
    subprocess.run([*command, "--domain", "unlimited"], cwd=tmp_path, capture_output=True, check=True)
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    last = ended.stderr.decode().splitlines()[-1]
    assert ended.returncode == 1
    assert last.startswith("t5refine: runs/heart/checkpoint-1 can't be written: File too large; what was there is unch")
    assert b"Traceback" not in ended.stderr
    assert not (tmp_path / "adapters" / "heart").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_file(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RefineError, match="a can't be written: No space left on device; what was there is unchanged"):
        write_file(tmp_path / "a", b"new")
    assert files(tmp_path) == {"a": b"old"}


def test_a_removal_that_is_cut_short_leaves_no_half(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "a").write_text("x")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    remove_directory(tmp_path / "checkpoint-4")
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint-4.removed"]


def test_a_checkpoint_that_cant_be_removed_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    run = RunDirectory(tmp_path)
    for step in (3, 6, 9):
        with run.write(step) as staged:
            (staged / "trainer_state.json").touch()
    monkeypatch.setattr(Path, "rename", no_space)
    run.keep_only(2, newest=9, best=None)
    assert f"{tmp_path / 'checkpoint-3'} is no longer needed, but can't be removed: No space left" in caplog.text
    assert len(run.checkpoints()) == 3


def test_a_place_is_probed_without_a_trace(tmp_path):
    check_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
