"""Run a reader on a file: it must accept the file or raise an error that names it."""

import os
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from robust_backbones.core.errors import UserError

LONGEST = 2000  # longest message, characters
OUTCOMES = ("accepted", "refused", "findings")


class Forbidden(BaseException):
    """A file made the reader start a program or access another file. Not an `Exception`."""


_ACTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
    "socket.getaddrinfo",
    "urllib.Request",
    "os.remove",
    "os.rename",
    "os.kill",
    "shutil.rmtree",
    "webbrowser.open",
    "ctypes.dlopen",
)
_watched: list[Path] = []  # folders that a case may write to


def watch(event: str, args: tuple) -> None:
    """Audit hook that reports started programs, connections and files opened for writing."""
    if not _watched:
        return
    place = str(args[0]) if args else ""
    inside = any(place.startswith(str(folder)) for folder in _watched)
    if event in _ACTS and not inside:
        raise Forbidden(f"{event} {place[:200]}")
    writes = event == "open" and isinstance(args[2], int)
    if writes and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not inside:
        if place != os.devnull:
            raise Forbidden(f"{place[:200]} opened for writing")


def judge(target, folder: Path, file: str, data: bytes) -> tuple[str, str]:
    """Read `data` as `folder/file`. Returns an outcome of `OUTCOMES` and the message."""
    path = folder / file
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    _watched[:] = [folder, Path(tempfile.gettempdir())]
    try:
        target.read(folder, path)
        return "accepted", ""
    except UserError as error:
        _watched.clear()
        message = str(error)
        wrong = _unfit(message, folder)
        return ("findings", f"{wrong}: {message[:300]!r}") if wrong else ("refused", message)
    except (Exception, Forbidden):
        _watched.clear()
        kind = type(sys.exc_info()[1]).__qualname__
        return "findings", f"{kind}: {traceback.format_exc()}"
    finally:
        _watched.clear()
        if before is not None:
            path.write_bytes(before)
        shutil.rmtree(folder / "cache", ignore_errors=True)  # decoded contents


def _unfit(message: str, folder: Path) -> str:
    """Find the fault of an error message for users."""
    if "Traceback (most recent" in message:
        return "a traceback in a message"
    if len(message) > LONGEST:
        return "a message that is too long"
    if str(folder) not in message:
        return "a message that does not name the file"
    if not message.replace("\n", "").isprintable():
        return "a message that cannot be printed"
    return ""


def signature(text: str) -> str:
    """Signature of a finding: its exception and the line that raised it."""
    frames = re.findall(r'File "([^"]+)", line \d+, in (\S+)', text)
    ours = [f"{Path(path).name}:{name}" for path, name in frames if "/tests/" not in path]
    product = [
        f"{Path(path).name}:{name}"
        for path, name in frames
        if "/robust_backbones/" in path or "/classification/" in path
    ]
    where = " < ".join(dict.fromkeys([*ours[-1:], *product[-2:][::-1]]))
    return f"{text.split(':')[0]} in {where}" if frames else text.split(":")[0]
