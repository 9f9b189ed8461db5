"""Files that are either whole or absent, and where the caches lie."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from robust_backbones.core.errors import FULL, UserError

# How numpy and Pillow tell of it, who keep the number to themselves.
_SHORT = re.compile(r"\d+ requested and \d+ written|encoder error -2 when writing")
_MARK = "????????.tmp"  # how the names of `atomic`'s temporary files end; they begin with a dot


def cache_dir() -> Path:
    """`$ROBUST_BACKBONES_CACHE`, else `robust_backbones` below `$XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("ROBUST_BACKBONES_CACHE") or f"{base}/robust_backbones").expanduser()


def check_readable(path: str | Path, fix: str) -> None:
    """For programs to call before they import what reads the file, which takes seconds.

    Raises:
        UserError: it cannot be opened; ends in `fix`.
    """
    try:
        open(path, "rb").close()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {fix}.") from None


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it takes its place, flushed.

    A reader sees the old file or the new one, never half of one, even if the process is killed.
    What killed processes left of the same file is removed.

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full; an older file
            stays as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.glob(f".{glob.escape(path.name)}.{_MARK}"))
        handle, name = _temporary(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place.") from None
    try:
        with _told(path, name):
            yield Path(name)
            with open(name, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp makes private files
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def _temporary(path: Path) -> tuple[int, str]:
    """A new file beside `path`, open; locked as long as it is, so that nobody sweeps it away."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with contextlib.suppress(OSError):  # a file system without locks: `_sweep` gets none either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # swept before it was locked


def _sweep(temporaries: Iterable[Path]) -> None:
    """Remove those that no process is at work on: what `atomic` left when one was killed."""
    for left in temporaries:
        with contextlib.suppress(OSError), open(left, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextlib.contextmanager
def _told(path: Path, temporary: str) -> Iterator[None]:
    """Turn the errors of a full disk, or of a folder that is gone, into one that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save hides the one behind the other
        chain = [e for e in (error, error.__context__, error.__cause__) if isinstance(e, OSError)]
        numbers = [errno.ENOSPC if _SHORT.search(str(e)) else e.errno for e in chain]
        full = next((number for number in numbers if number in FULL), None)
        own = next((e.errno for e in chain if str(e.filename) == temporary), None)
        if not (fault := full or own):
            raise
        kept = "; the file of before is untouched" if path.exists() else ""
        raise UserError(
            f"cannot write {path}: {os.strerror(fault)}{kept}. "
            f"{'Make room' if full else 'Mend that'} and start again."
        ) from error


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Be the only process that writes into `folder`; a process that dies gives it back.

    What `atomic` left in it, or in folders inside, when a process was killed is removed.

    Raises:
        UserError: another process has it, or it cannot be made.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another run is writing to {folder}; wait for its end or choose another folder."
        ) from None
    except FileExistsError:
        raise UserError(f"{folder} is a file; give a folder.") from None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another.") from None
    try:
        _sweep(folder.rglob(f".?*.{_MARK}"))
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked(path: str | Path, patience: float = 10.0) -> Iterator[None]:
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


def sha256(path: str | Path) -> str:
    """Hex digest of the file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
