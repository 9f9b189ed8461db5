import os

import pytest

from robust_backbones import files
from robust_backbones.errors import UserError


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


def test_who_claims_a_folder_clears_what_a_kill_left(tmp_path):
    kept = tmp_path / ".of_somebody_else.tmp"
    kept.touch()
    with files.atomic(tmp_path / "a.txt") as temporary:
        left = tmp_path / temporary.name.replace("a.txt", "b.txt")
        left.touch()  # as a killed process would
    with files.claimed(tmp_path):
        assert not left.exists() and kept.exists() and (tmp_path / "a.txt").exists()


def test_atomic_respects_the_umask(tmp_path):
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        with files.atomic(path) as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_atomic_names_a_place_that_cannot_be_written(tmp_path):
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
