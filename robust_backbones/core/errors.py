"""Report expected errors without a traceback: user errors, Ctrl-C, closed pipes, full resources."""

import contextlib
import difflib
import errno
import io
import json
import os
import re
import select
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 130, 141  # exit codes that shells report for SIGINT, SIGPIPE
EXIT_USER_ERROR = 2  # exit code of errors that another start cannot fix

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, full quota, file too large
MAX_LISTED = 12  # maximum number of names for a full list in a message
MAX_NAME = 100  # longest name in characters that is compared with the known ones
MAX_LENGTH = 2000  # longest message in characters; a message may quote a hostile file


class UserError(ValueError):
    """The input is invalid. The message contains the value, the allowed values and the fix.

    Control characters and unprintable text are escaped. If a message has more than
    `MAX_LENGTH` characters, its middle is cut.
    """

    def __init__(self, message: object = "") -> None:
        text = "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in str(message))
        if len(text) > MAX_LENGTH:
            cut = " [...] "
            half = (MAX_LENGTH - len(cut)) // 2
            text = text[:half] + cut + text[-half:]
        super().__init__(text)


class WorkerFailure(str):
    """The message of a `UserError` that was raised in a worker process.

    Workers return the message, because a data loader adds the worker's traceback to exceptions.
    """


def nearest(name: str, choices: Iterable[str], count: int = 3, least: float = 0.6) -> list[str]:
    """Return the names most similar to `name`, the most similar first. Case is ignored.

    Names with which `name` begins come before all others.

    Args:
        name: unknown name.
        choices: known names.
        count: largest length of the result.
        least: smallest similarity, in [0, 1] as in difflib. Names that contain `name` follow.
    """
    word = name[:MAX_NAME].lower()
    ratios = {c: difflib.SequenceMatcher(None, word, c.lower()).ratio() for c in choices}
    similar = sorted(
        (c for c in ratios if ratios[c] >= least),
        key=lambda c: (not word.startswith(c.lower()), -ratios[c]),
    )
    if len(word) >= 3:  # shorter words are part of too many names
        similar += [c for c in ratios if word in c.lower() and c not in similar]
    return similar[:count]


def choose_from(name: str, choices: Iterable[str], list_all: str = "") -> str:
    """Return the end of the message about an unknown name: similar names, and how to see all.

    Args:
        name: unknown name.
        choices: known names. If there are at most `MAX_LISTED`, all are listed.
        list_all: sentence that says how to list the names if there are more.
    """
    known = list(choices)
    similar = nearest(name, known)
    hint = f"Did you mean {either(similar)}? " if similar else ""
    if len(known) <= MAX_LISTED:
        return f"{hint}Choose from {', '.join(known)}."
    shown = ", ".join(known[:MAX_LISTED])
    return hint + (list_all or f"Choose from {shown}, and {len(known) - MAX_LISTED} more.")


def either(names: Iterable[str]) -> str:
    """Return names as alternatives: `a`, `a or b`, `a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def counted(number: int, one: str, many: str) -> str:
    """Return a number with the words that follow it, such as `1 image is` or `2 images are`."""
    return f"{number} {one if number == 1 else many}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Exit without a traceback on expected errors. Do not catch other exceptions.

    A `UserError`, a full disk or a full GPU prints one line on stderr and exits with code 2. Ctrl-C
    and a closed pipe (`| head`) exit with the code of their signal.
    """
    _make_writable()
    try:
        yield
        sys.stdout.flush()
    except (UserError, KeyboardInterrupt, OSError, RuntimeError) as error:
        found = outcome(error)
        if found is None:
            raise
        _exit_with(*found)


def outcome(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the line of an expected error; None for other errors.

    The line about a closed pipe is empty. Output that follows is discarded.
    """
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return EXIT_PIPE_CLOSED, ""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted. Run the same command again, with --resume if it has that option."
        return EXIT_INTERRUPTED, text
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        # The write bypassed `files.atomic`, as logs do.
        text = f"cannot write {error.filename or 'a file of this run'}: {os.strerror(error.errno)}."
        return EXIT_USER_ERROR, f"error: {text} Free disk space and rerun."
    if problem := out_of_gpu_memory(error):
        return EXIT_USER_ERROR, f"error: {problem} {_FREE_A_GPU}"
    return None


_FREE_A_GPU = (
    "Stop other programs on the GPU, which nvidia-smi lists, or set CUDA_VISIBLE_DEVICES= to use "
    "the CPU."
)


def out_of_gpu_memory(error: BaseException) -> str:
    """Return a sentence with the requested memory if a GPU is out of memory; else an empty one."""
    torch = sys.modules.get("torch")  # not imported here, because the import takes seconds
    text = str(error)
    # The second condition is true if the GPU is full before the first tensor.
    if torch is None or not (
        isinstance(error, torch.OutOfMemoryError) or text.startswith("CUDA error: out of memory")
    ):
        return ""
    request = re.search(r"Tried to allocate [\d.]+ \w+", text)
    return f"out of GPU memory ({request[0] if request else text.splitlines()[0]})."


@contextlib.contextmanager
def memory_advice(fix: str, settings: str = "") -> Iterator[None]:
    """Raise a `UserError` if the block needs more memory than the GPU has.

    Args:
        fix: sentence with the options that reduce the memory of the block.
        settings: present values of these options, such as `--batch-size 512`.
    """
    try:
        yield
    except RuntimeError as error:
        if not (problem := out_of_gpu_memory(error)):
            raise
        raise UserError(f"{settings}{': ' * bool(settings)}{problem} {fix}") from None


def _make_writable() -> None:
    """Replace closed output streams (`>&-`) by devnull. Escape characters they cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def print_error(line: str) -> None:
    """Print one line on stderr, once for all processes that `torchrun` started on this machine.

    An empty line is not printed.
    """
    if tell_torchrun(line) and os.environ.get("LOCAL_RANK", "0") != "0":
        return  # torchrun prints it, if process 0 of this machine does not have the error
    with contextlib.suppress(OSError):  # stderr may be a file on the full disk
        print(line, end="\n" if line else "", file=sys.stderr)


def tell_torchrun(text: str, when: float | None = None) -> bool:
    """Write the error of this process for the report of `torchrun`, if it started the process.

    Args:
        text: text that the report shows.
        when: time of the failure, as from `time.time`; None: now. The report shows the earliest
            failure last, as the root cause.

    Returns:
        Whether `torchrun` started this process.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    details = {"py_callstack": text, "timestamp": str(int(when or time.time()))}
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
        json.dump({"message": {"message": text, "extraInfo": details}}, file)
    return True


def _exit_with(code: int, line: str) -> NoReturn:
    print_error(line)
    try:
        sys.stdout.flush()
    except OSError:  # on a full disk, Python's flush at exit would change the exit code
        _redirect_stdout_to_devnull()
    sys.exit(code)


def _stdout_is_closed() -> bool:
    """Return whether stdout is the broken pipe. If so, redirect remaining output to devnull."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # poll reports errors even if no event is requested
    if not pipe.poll(0):
        return False
    _redirect_stdout_to_devnull()
    return True


def _redirect_stdout_to_devnull() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
