"""Output of a run: a few lines on the console, and everything in `log.txt` in its folder."""

import contextlib
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

LOG = "log.txt"
_logger = logging.getLogger("robust_backbones.run")


def say(text: str) -> None:
    """Print a line on the console, and write it to the log file."""
    print(text, flush=True)
    note(text)


def note(text: str) -> None:
    """Write a line to the log file only."""
    _logger.info(text)


def introduce(rows: Mapping[str, str]) -> None:
    """Print the lines at the start of a run.

    Args:
        rows: facts by their names, such as `{"data": "digits: 400 training images"}`.
    """
    width = max(map(len, rows))
    for name, fact in rows.items():
        say(f"{name:{width}}  {fact}")


class _File(logging.FileHandler):
    """Log file whose errors, such as a full disk, stop the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


@contextlib.contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Append all notes, and the messages of all libraries, to `log.txt` in the folder.

    The console shows warnings only.
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    file = _File(folder / LOG, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    root.setLevel(logging.INFO)
    root.handlers = [*handlers, file, *([] if handlers else [console])]
    try:
        note(f"command: {shlex.join(sys.argv)}")
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        file.close()
