"""Write files atomically, lock and hash files, and locate the cache."""

import codecs
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from robust_backbones.core.errors import DISK_FULL, UserError
from robust_backbones.core.paths import expand

# Messages of NumPy and Pillow about a full disk. Their exceptions have no errno.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|encoder error -2 when writing")
_TEMPORARY = "????????.tmp"  # glob pattern for the end of the names of temporary files


def cache_dir() -> Path:
    """Return the cache folder.

    The environment variable ROBUST_BACKBONES_CACHE sets this folder. By default, it is the folder
    `robust_backbones` in `$XDG_CACHE_HOME` or in `~/.cache`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(expand(os.environ.get("ROBUST_BACKBONES_CACHE") or f"{base}/robust_backbones"))


def check_readable(path: str | Path, fix: str) -> None:
    """Check that a file can be opened. Commands call this before slow imports.

    Args:
        path: file to open.
        fix: imperative sentence at the end of the error message.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        open(path, "rb").close()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. {fix}.") from None


# Byte order mark at the start of a file -> encoding of the file.
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def byte_order_mark(path: str | Path) -> str | None:
    """Return the encoding of the byte order mark at the start of a file; None without a mark.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    return next((code for mark, code in _ENCODINGS.items() if start.startswith(mark)), None)


def read_text(path: str | Path) -> str:
    """Read a text file from another program: UTF-8, or the encoding of its byte order mark.

    Windows editors and PowerShell write byte order marks. Line endings are not translated.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: the file is not text in this encoding.
    """
    return Path(path).read_bytes().decode(byte_order_mark(path) or "utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file from another program; see `read_text`.

    Raises:
        UserError: the file cannot be read, or does not contain JSON.
    """
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise UserError(
            f"{path}: the file cannot be read ({error.strerror}). Give a JSON file."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}).") from None


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block succeeds.

    Readers see either the old file or the complete new one, even if the process is killed.
    Temporary files of `path` from killed processes are removed.

    Raises:
        UserError: the folder cannot be created or written to, or the disk is full. An existing
            file stays unchanged.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent.glob(f".{glob.escape(path.name)}.{_TEMPORARY}"))
        handle, name = _create_temporary(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Choose another path.") from None
    try:
        with _translate_write_errors(path, name):
            yield Path(name)
            with open(name, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # files from mkstemp are private
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def _create_temporary(path: Path) -> tuple[int, str]:
    """Create a temporary file next to `path`, locked until it is closed."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with contextlib.suppress(OSError):  # file systems without locks keep stale files
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process removed the file before it was locked


def _remove_stale(temporaries: Iterable[Path]) -> None:
    """Remove the temporary files that no process has locked. They are from killed processes."""
    for stale in temporaries:
        with contextlib.suppress(OSError), open(stale, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()


@contextlib.contextmanager
def _translate_write_errors(path: Path, temporary: str) -> Iterator[None]:
    """Convert write errors, such as a full disk, to a UserError that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save chains the OSError to its own error
        chain = [e for e in (error, error.__context__, error.__cause__) if isinstance(e, OSError)]
        numbers = [errno.ENOSPC if _SHORT_WRITE.search(str(e)) else e.errno for e in chain]
        full = next((number for number in numbers if number in DISK_FULL), None)
        own = next((e.errno for e in chain if str(e.filename) == temporary), None)
        if not (fault := full or own):
            raise
        unchanged = " The old file is unchanged." if path.exists() else ""
        fix = "Free disk space and rerun" if full else "Fix this and rerun"
        raise UserError(f"cannot write {path}: {os.strerror(fault)}.{unchanged} {fix}.") from error


def check_folder(folder: str | Path) -> None:
    """Check an output folder before slow work, without creating it.

    Raises:
        UserError: the folder is a file, or cannot be created or written to.
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--output {folder}: {existing} is a file. Choose another folder.")
    if not os.access(existing, os.W_OK):
        raise UserError(f"--output {folder}: {existing} is read-only. Choose another folder.")


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Reserve `folder` for this process until the block or the process ends.

    Also remove temporary files of killed processes from the folder and its subfolders.

    Raises:
        UserError: another process has claimed the folder, or the folder cannot be created.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another run is writing to this folder. Wait until it ends, or choose "
            "another folder."
        ) from None
    except FileExistsError:
        raise UserError(f"{folder} is a file. Choose a folder.") from None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}. Choose another path.") from None
    try:
        _remove_stale(folder.rglob(f".?*.{_TEMPORARY}"))
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked(path: str | Path, patience: float = 10.0) -> Iterator[None]:
    """Hold the lock file `path`, so that only one process at a time executes the block.

    The operating system releases the lock if the process dies.

    Args:
        path: lock file.
        patience: number of seconds to wait before a warning is logged.

    Raises:
        UserError: the lock file cannot be created.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            logging.getLogger(__name__).warning("waiting for another process that holds %s", path)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}. Set ROBUST_BACKBONES_CACHE to another folder."
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
    """Return the SHA-256 digest of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
