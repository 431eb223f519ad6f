"""Atomic writes: all or nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ai_learning.files import atomic_path, remove_stale, write_text


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "é")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "é".encode()


def test_two_writers_of_one_process_have_two_temporaries(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as one, atomic_path(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the last to finish, whole


def test_what_dead_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    died = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    dead = int(died.stdout)
    stale = [f".last.pt.{dead}.0a1b2c3d.tmp", f".last.pt.{dead}.tmp", f".a.{os.getpid()}.0a1b2c3d.tmp"]
    alive = [f".b.{os.getppid()}.0a1b2c3d.tmp", ".last.prev.pt.tmp", "notes.tmp", f"x.{dead}.tmp", "last.pt"]
    for name in stale + alive:
        (tmp_path / name).write_text("half")
    (tmp_path / f".folder.{dead}.tmp").mkdir()
    with atomic_path(tmp_path / "new.txt") as temporary:
        temporary.write_text("new")
        assert sorted(p.name for p in remove_stale(tmp_path)) == sorted(stale)
    expected = {*alive, f".folder.{dead}.tmp", "new.txt"}
    assert {p.name for p in tmp_path.iterdir()} == expected
    assert remove_stale(tmp_path) == [] and remove_stale(tmp_path / "none") == []
