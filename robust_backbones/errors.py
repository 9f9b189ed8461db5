"""Mistakes that a user can mend, told apart from faults of ours; and a user who has enough."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

INTERRUPTED, PIPE_CLOSED = 130, 141  # what shells report for SIGINT and SIGPIPE


class UserError(ValueError):
    """A wrong input. The message names the value, what is allowed and the fix."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit code 2; Ctrl-C, and a reader that has
    gone (`| head`), end the program without a traceback. Other errors keep theirs."""
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command begins again or goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        sys.exit(PIPE_CLOSED)


def _reader_has_gone() -> bool:
    """Whether stdout is the pipe that broke; if so, what is left for it goes nowhere."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # errors are always reported
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
