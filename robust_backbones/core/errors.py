"""Mistakes that a user can mend, told apart from faults of ours; and a user who has enough."""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import NoReturn

INTERRUPTED, PIPE_CLOSED = 130, 141  # what shells report for SIGINT and SIGPIPE

# What the system says when no more can be written: disk, quota, size of one file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST = 2000  # characters of a message; a value that it quotes may come from a hostile file


class UserError(ValueError):
    """A wrong input. The message names the value, what is allowed and the fix.

    What a terminal would obey or could not show is written as an escape, and the middle of a
    message without end is left out.
    """

    def __init__(self, message: object = "") -> None:
        text = "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in str(message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} [...] {text[10 - LONGEST // 2 :]}"
        super().__init__(text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `UserError`, or a full disk, into one line on stderr and exit code 2; Ctrl-C, and a
    reader that has gone (`| head`), end the program without a traceback. Others keep theirs."""
    _make_writable()
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        _leave(str(error))
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on or begins again, with --resume if it has that",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        sys.exit(PIPE_CLOSED)
    except OSError as error:  # logs, TensorBoard's files: what is not written by `files.atomic`
        if error.errno not in FULL:
            raise
        what = error.filename or "what belongs to this run"
        _leave(f"cannot write {what}: {os.strerror(error.errno)}. Make room and start again.")


def _make_writable() -> None:
    """Closed stdout and stderr (`>&-`) swallow what they get; ASCII ones get escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _leave(message: str) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr may be a file on the full disk
        print(f"error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # so may stdout, and Python would end with another code than ours
        _let_stdout_go()
    sys.exit(2)


def _reader_has_gone() -> bool:
    """Whether stdout is the pipe that broke; if so, what is left for it goes nowhere."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # errors are always reported
    if not pipe.poll(0):
        return False
    _let_stdout_go()
    return True


def _let_stdout_go() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
