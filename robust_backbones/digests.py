"""What fetched files must contain: `cache_dir()/digests.json`, and the checks against it.

`{"version": 1, "files": {source: {"sha256", "path", "stamp": [bytes, mtime in ns], "mirror"}}}`
"""

import json
import os
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, cache_dir, locked, sha256

VERSION = 1


def records() -> dict[str, dict]:
    """All entries, by source.

    Raises:
        UserError: the file is broken, of another release, or not to be read.
    """
    path = _file()
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["version"] != VERSION:
            raise KeyError
        return contents["files"]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path} is broken or of another release; remove it, and the digests of the next "
            "files are recorded anew."
        ) from None


def record(source: str, path: Path, digest: str, mirror: bool) -> None:
    """Note that `path` is the file of `source`, with this digest.

    Args:
        mirror: the file is in the user's mirror folder: not ours to remove.
    """
    entry = {"sha256": digest, "path": str(path), "stamp": stamp(path), "mirror": mirror}
    with locked(_file().with_name("digests.lock")):
        contents = {"version": VERSION, "files": records() | {source: entry}}
        with atomic(_file()) as temporary:
            temporary.write_text(json.dumps(contents, indent=1), encoding="utf-8")


def _file() -> Path:
    return cache_dir() / "digests.json"


def stamp(path: Path) -> list[int]:
    """`[bytes, time of the last change in ns]`: while it stays, there is no need to hash again."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def inspect(path: Path, expected: str | None) -> tuple[str, str]:
    """The file's SHA-256, and what is wrong with it: the end of a sentence, or "".

    Args:
        expected: the SHA-256 that it must have, if that is known.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        found = sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if expected is not None and found == expected:
        return found, ""
    if kind := _not_weights(head):
        return found, f"is {kind}, not a file of weights"
    if expected is not None:
        size = path.stat().st_size
        return found, (
            f"has SHA-256 {found[:12]}... ({size} bytes) instead of {expected[:12]}...: it is "
            "truncated, swapped or damaged"
        )
    return found, ""


def _not_weights(head: bytes) -> str:
    if not head:
        return "empty"
    if b"\0" in head:  # binary, as all formats of weights are
        return ""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return "an HTML page"
    if text.startswith(b"<?xml"):
        return "an XML message"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run: git lfs pull)"
    return "a JSON message" if text.startswith((b'{"', b"{\n", b"{\r")) else ""


def discard(path: Path) -> None:
    """Remove a file and, in the hub's cache, what its links lead to: else it would come back."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
