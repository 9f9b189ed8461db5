"""Paths as users write them. Imports no installed package, because the installer needs it."""

import os


def expand(path: str | os.PathLike[str]) -> str:
    """Replace a leading `~` and environment variables in a path or URL.

    The shell does this neither in quotes nor after a colon, and configuration files have no shell.
    The parts of `A;B` are expanded separately. A command of `pipe:` is returned unchanged, because
    a shell runs it.
    """
    text = os.fspath(path)
    if text.startswith("pipe:"):
        return text
    return ";".join(os.path.expanduser(os.path.expandvars(part)) for part in text.split(";"))
