"""Files that are either whole or absent, and where the caches lie."""

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

from robust_backbones.errors import UserError


def cache_dir() -> Path:
    """`$ROBUST_BACKBONES_CACHE`, else `robust_backbones` below `$XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("ROBUST_BACKBONES_CACHE") or f"{base}/robust_backbones").expanduser()


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; when the block ends well it takes its place, flushed.

    A reader sees the old file or the new one, never half of one, even if the process is killed.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place.") from None
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes private files
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path, patience: float = 10.0):
    """Hold the lock file `path`: of all processes that ask, one at a time is inside the block.

    A process that dies gives it back. Whoever waits longer than `patience` seconds says so, once.

    Raises:
        UserError: the lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            logging.getLogger(__name__).warning("waiting for another process that holds %s", path)
            lock.acquire()
    except OSError as error:  # Timeout is one, too, and has been dealt with
        raise UserError(
            f"cannot write {path}: {error.strerror}; set ROBUST_BACKBONES_CACHE to another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path) -> str:
    """Hex digest of the file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
