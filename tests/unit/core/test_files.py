import os
import shutil
import subprocess
import sys

import pytest

from robust_backbones.core import files
from robust_backbones.core.errors import UserError


def test_atomic_replaces_in_one_step(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.atomic(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with files.atomic(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


LEFT_BY_A_KILL = """
import os, signal, sys
from robust_backbones.core.files import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(path):
    """The temporary file of a process that was killed while it wrote `path`."""
    before = set(path.parent.iterdir())
    assert subprocess.run([sys.executable, "-c", LEFT_BY_A_KILL, path]).returncode == -9
    (left,) = set(path.parent.iterdir()) - before
    return left


def test_atomic_removes_temporary_files_of_killed_processes(tmp_path):
    left, other = leave(tmp_path / "a[1].txt"), leave(tmp_path / "b.txt")
    with files.atomic(tmp_path / "a[1].txt") as temporary:
        temporary.write_text("whole")
    assert not left.exists() and other.exists()
    assert (tmp_path / "a[1].txt").read_text() == "whole"


def test_claimed_removes_stale_temporary_files_only(tmp_path):
    kept = tmp_path / ".of_somebody_else.tmp"
    kept.touch()
    (tmp_path / "inside").mkdir()
    left = [leave(tmp_path / "b.txt"), leave(tmp_path / "inside" / "c.txt")]
    with files.atomic(tmp_path / "inside" / "c.txt") as temporary:
        with files.claimed(tmp_path):
            assert not any(path.exists() for path in left) and kept.exists()
        with files.atomic(tmp_path / "inside" / "c.txt") as second:
            second.write_text("second")
        temporary.write_text("first")
    assert (tmp_path / "inside" / "c.txt").read_text() == "first"


def test_a_temporary_file_removed_before_its_lock_is_created_again(tmp_path, monkeypatch):
    made, flock = [], files.fcntl.flock

    def swept_before(handle, how):
        if not made:
            (path,) = tmp_path.iterdir()
            path.unlink()
        made.append(handle)
        flock(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", swept_before)
    with files.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert len(made) == 2 and (tmp_path / "a.txt").read_text() == "x"


def test_a_removed_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="new/a.txt: No such file or directory. Fix this"):
        with files.atomic(tmp_path / "new" / "a.txt") as temporary:
            shutil.rmtree(temporary.parent)
            temporary.write_text("x")
    with pytest.raises(FileNotFoundError, match="other"), files.atomic(tmp_path / "a.txt"):
        open(tmp_path / "other")  # another file: a bug, not a user error


def test_atomic_respects_the_umask(tmp_path):
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        with files.atomic(path) as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_atomic_names_an_unwritable_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/a.txt"):
        with files.atomic(tmp_path / "file" / "a.txt"):
            pass


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "abc") == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ROBUST_BACKBONES_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/robust_backbones"),
        ({"HOME": "/c"}, "/c/.cache/robust_backbones"),
    ],
)
def test_cache_dir(monkeypatch, variables, expected):
    for name in ("ROBUST_BACKBONES_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(files.cache_dir()) == expected


def test_a_file_cannot_be_claimed(tmp_path):
    (tmp_path / "a").touch()
    with (
        pytest.raises(UserError, match="a is a file. Choose a folder"),
        files.claimed(tmp_path / "a"),
    ):
        pass


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_with_byte_order_marks(tmp_path, code):
    path = tmp_path / "a.json"
    mark = "\ufeff" if code == "utf-16-be" else ""  # Python writes this mark of itself elsewhere
    path.write_text(f'{mark}["é"]', encoding=code)
    assert files.read_text(path) == '["é"]' and files.read_json(path) == ["é"]
    assert (files.byte_order_mark(path) is None) == (code == "utf-8")


@pytest.mark.parametrize("data", [b"\xff\xfea", b"\xe9", b"{", b"[" * 100_000])
def test_files_that_are_not_json(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match="a.json is not JSON"):
        files.read_json(path)
