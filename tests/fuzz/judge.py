"""What a reader may do with a file: take it, or refuse it by a message that names it."""

import os
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from robust_backbones.core.errors import UserError

LONGEST = 2000  # characters of a message
OUTCOMES = ("accepted", "refused", "findings")


class Forbidden(BaseException):
    """A file made the reader act; no `except Exception` hides it."""


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
_watched: list[Path] = []  # while a case is read: the only folders that it may write to


def watch(event: str, args: tuple) -> None:
    """An audit hook: Python tells it of all that a program does to the world."""
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
    """Read `data` as `folder/file`: an outcome of `OUTCOMES`, and what it says."""
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
        shutil.rmtree(folder / "cache", ignore_errors=True)  # what was decoded


def _unfit(message: str, folder: Path) -> str:
    """What a message for a user must not be."""
    if "Traceback (most recent" in message:
        return "a traceback in a message"
    if len(message) > LONGEST:
        return "a message without end"
    if str(folder) not in message:
        return "a message that does not name the file"
    if not message.replace("\n", "").isprintable():
        return "a message that cannot be printed"
    return ""


def signature(text: str) -> str:
    """Equal for findings with one cause: the exception, and where it came from."""
    frames = re.findall(r'File "([^"]+)", line \d+, in (\S+)', text)
    ours = [f"{Path(path).name}:{name}" for path, name in frames if "/tests/" not in path]
    product = [
        f"{Path(path).name}:{name}"
        for path, name in frames
        if "/robust_backbones/" in path or "/classification/" in path
    ]
    where = " < ".join(dict.fromkeys([*ours[-1:], *product[-2:][::-1]]))
    return f"{text.split(':')[0]} in {where}" if frames else text.split(":")[0]
