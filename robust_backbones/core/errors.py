"""User errors versus bugs, and clean exits on Ctrl-C, closed pipes and full disks."""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import NoReturn

EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 130, 141  # shells report these for SIGINT and SIGPIPE

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, maximum file size
MAX_LENGTH = 2000  # characters of a message, which may quote a value from a hostile file


class UserError(ValueError):
    """Invalid input. The message contains the value, the allowed values and the fix.

    Control characters and unprintable text are escaped. The middle of a message of more than
    `MAX_LENGTH` characters is cut.
    """

    def __init__(self, message: object = "") -> None:
        text = "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in str(message))
        if len(text) > MAX_LENGTH:
            cut = " [...] "
            half = (MAX_LENGTH - len(cut)) // 2
            text = text[:half] + cut + text[-half:]
        super().__init__(text)


class WorkerFailure(str):
    """The message of a `UserError` in a worker process.

    A data loader would raise the exception with the traceback of the worker.
    """


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Exit cleanly on expected errors. Other exceptions keep their traceback.

    A `UserError` or a full disk prints one line on stderr and exits with code 2. Ctrl-C and a
    closed pipe (`| head`) exit with the code of their signal.
    """
    _make_writable()
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        _exit_with(str(error))
    except KeyboardInterrupt:
        print(
            "interrupted. Run the same command again, with --resume if it has that option.",
            file=sys.stderr,
        )
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        sys.exit(EXIT_PIPE_CLOSED)
    except OSError as error:  # from writes that bypass `files.atomic`, such as logs
        if error.errno not in DISK_FULL:
            raise
        what = error.filename or "a file of this run"
        _exit_with(f"cannot write {what}: {os.strerror(error.errno)}. Free disk space and rerun.")


def _make_writable() -> None:
    """Replace a closed stdout or stderr (`>&-`) by devnull; escape text that ASCII cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _exit_with(message: str) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr may be a file on the full disk
        print(f"error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # on a full disk, Python's flush at exit would change the exit code
        _redirect_stdout_to_devnull()
    sys.exit(2)


def _stdout_is_closed() -> bool:
    """Whether stdout is the broken pipe. If so, redirect its remaining output to devnull."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # poll always reports errors
    if not pipe.poll(0):
        return False
    _redirect_stdout_to_devnull()
    return True


def _redirect_stdout_to_devnull() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
