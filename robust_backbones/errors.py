"""Mistakes that a user can mend, told apart from faults of ours."""

import contextlib
import sys


class UserError(ValueError):
    """A wrong input. The message names the value, what is allowed and the fix."""


@contextlib.contextmanager
def user_errors():
    """Turn a `UserError` into one line on stderr and exit code 2; other errors keep a traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
