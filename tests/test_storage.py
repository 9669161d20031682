from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from t5refine_peft import RefineError
from t5refine_peft.storage import atomic_directory, fingerprint_files, free_path, recover, remove_directory, write_file


def fail_halfway(target: Path) -> None:
    with atomic_directory(target) as staged:
        (staged / "a").write_text("half")
        raise ValueError("stop")


def test_the_old_stays_until_the_new_is_complete(tmp_path: Path):
    target = tmp_path / "out"
    with atomic_directory(target) as staged:
        (staged / "a").write_text("old")
    with pytest.raises(ValueError, match="stop"):
        fail_halfway(target)
    assert (target / "a").read_text() == "old"
    with atomic_directory(target) as staged:
        (staged / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path):
    with (
        pytest.raises(RefineError, match="No space left on device; what was there is unchanged"),
        atomic_directory(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_the_old_comes_back_when_the_new_cannot_take_its_place(tmp_path: Path, monkeypatch, cut):
    """A second Ctrl+C reaches a program between the two renames as well."""
    write_file(tmp_path / "out" / "a", b"old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise cut
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises((KeyboardInterrupt, RefineError)), atomic_directory(tmp_path / "out") as staged:
        (staged / "a").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_reason_is_told_for_several_files_too(tmp_path: Path):
    several = shutil.Error([("a", "b", "No space left on device")])
    with pytest.raises(RefineError, match="No space left on device"), atomic_directory(tmp_path / "out"):
        raise several


def test_fingerprints_depend_on_names_and_contents(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.write_text("x")
    prints = {fingerprint_files([one]), fingerprint_files([two]), fingerprint_files([one, two])}
    assert len(prints) == 3
    assert fingerprint_files([one, two]) == fingerprint_files([two, one])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "new" / "file"
    write_file(target, b"old")
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inner").touch()
    with pytest.raises(RefineError, match=r"can't be written: .*; what was there is unchanged"):
        write_file(tmp_path / "taken", b"x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "inner", "new", "taken"]


def test_a_directory_goes_at_once_even_over_the_rest_of_an_earlier_removal(tmp_path: Path):
    for name in ("gone", ".gone.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_directory(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_a_free_path_is_one_where_nothing_lies_not_even_a_link_to_nowhere(tmp_path: Path):
    assert free_path(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (tmp_path, tmp_path / "link"):
        with pytest.raises(RefineError, match="is there already"):
            free_path(taken)


def test_what_a_killed_writer_left_is_cleared_and_what_it_moved_aside_comes_back(tmp_path: Path):
    for name in (".out.abcdefgh.part", ".out.abcdefgh.part.old", ".out.previous", ".out.more.abcdefgh.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.abcdefgh.part.old" / "a").write_text("earlier")
    recover(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.more.abcdefgh.part", ".out.previous", "out"]
    assert (tmp_path / "out" / "a").read_text() == "earlier"
    (tmp_path / ".out.12345678.part.old").mkdir()
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "earlier"
    assert not (tmp_path / ".out.12345678.part.old").exists()
