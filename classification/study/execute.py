"""Execute one run of a study on any machine, and record how it ended.

The run's folder contains `run.json` (description), `console.txt` (output), `attempts.jsonl`
(attempts that did not finish) and `.study.lock`. The process of the run itself holds the lock.
Therefore no other process starts the run again, even if the process that started the run was
killed.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from classification.study.commands import read_metrics
from classification.study.file import StudyRun
from robust_backbones.core.errors import EXIT_USER_ERROR
from robust_backbones.core.files import atomic
from robust_backbones.core.signals import EXIT_RESUMABLE, GRACE

FINISHED, FAILED, INTERRUPTED, BUSY = "finished", "failed", "interrupted", "busy"
LOST = "cluster lost"
RUNNING, MISSING = "running", "missing"
MIN_POLL, MAX_POLL = 0.05, 1.0  # seconds between two checks of a running process


@dataclass(frozen=True)
class Attempt:
    """Outcome of one start of a run.

    Attributes:
        state: `FINISHED`, `FAILED`, `INTERRUPTED` (stopped on request, resumable), `BUSY` (another
            process is executing the run) or `LOST` (the machine or the cluster was lost).
        code: exit code of the last command; 0 for success.
        error: last error message; empty for success.
        seconds: wall time of the attempt, s.
        host: name of the machine.
    """

    state: str
    code: int = 0
    error: str = ""
    seconds: float = 0.0
    host: str = ""


def execute(
    run: StudyRun,
    lines: list[list[str]],
    environment: dict[str, str] | None = None,
    folder: str = ".",
    stop_requested: Callable[[], bool] = lambda: False,
) -> Attempt:
    """Start or resume a run and wait until it ends. A finished run is left unchanged.

    Args:
        run: run to execute.
        lines: command lines of the run, from `StudyRun.lines`.
        environment: additional environment variables for the run's processes.
        folder: working directory, to which the run's paths are relative.
        stop_requested: function that is called repeatedly. When it returns True, the run gets
            SIGTERM.
    """
    base = Path(folder)
    target, began = base / run.folder, time.monotonic()
    if run.store:
        for each in (*run.needs, run.folder):
            run.store.fetch(each)
    if read_metrics(base / run.result) is not None:
        return Attempt(FINISHED)
    target.mkdir(parents=True, exist_ok=True)
    log, code = target / "console.txt", 0
    with open(target / ".study.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Attempt(BUSY, error=f"another process is executing {run.folder}")
        _write_description(run, target / "run.json")
        for line in lines:
            code = _run_process(line, environment or {}, base, log, lock, stop_requested)
            if code:
                break
    state, error = FINISHED, ""
    if code == EXIT_RESUMABLE or code and stop_requested():
        state = INTERRUPTED
    elif code or read_metrics(base / run.result) is None:
        state, error = FAILED, last_error(log, code)
    seconds = round(time.monotonic() - began, 3)
    attempt = Attempt(state, code, error, seconds, socket.gethostname())
    if state != FINISHED:
        with contextlib.suppress(OSError):  # on a full disk, still return the attempt to the caller
            record(target, attempt)
    if run.store:
        run.store.send(run.folder)
    return attempt


def _write_description(run: StudyRun, path: Path) -> None:
    """Write `run.json` unless it exists. The report and the action `status` read this file."""
    if not path.exists():
        keys = ("part", "labels", "command", "options", "id", "gpus")
        contents = {key: getattr(run, key) for key in keys}
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def _run_process(
    words: list[str],
    environment: dict[str, str],
    folder: Path,
    log: Path,
    lock: IO,
    stop_requested: Callable[[], bool],
) -> int:
    """Run a command and return its exit code, which is negative if a signal killed it."""
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        poll, deadline = MIN_POLL, None
        while process.poll() is None:
            try:
                process.wait(poll)
            except subprocess.TimeoutExpired:
                poll = min(MAX_POLL, 1.5 * poll)
            if deadline is None and stop_requested():
                process.terminate()
                deadline = time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)  # also the processes that it has started
    return process.returncode


def last_error(log: Path, code: int) -> str:
    """Return the last error message in a log, or the last line if no line has an error message.

    Args:
        log: log file of the run.
        code: exit code of the process, negative if a signal killed it.
    """
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    if code < 0:
        return f"killed by signal {-code}" + (f" after: {lines[-1]}" if lines else "")
    if code == EXIT_USER_ERROR and (own := [s for s in lines if s.startswith("error: ")]):
        lines = own  # tracebacks of other processes of the run may come later
    errors = [line for line in lines if "error: " in line.lower()]
    silent = f"exited with code {code} and no output" if code else "no result"
    return (errors or lines or [silent])[-1].removeprefix("error: ")


def read_attempts(folder: Path) -> list[dict]:
    """Return the recorded attempts, oldest first. Incomplete lines are skipped."""
    try:
        lines = (folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return found


def record(folder: Path, attempt: Attempt) -> None:
    """Append an attempt to the run's `attempts.jsonl`."""
    row = {"time": time.time()} | asdict(attempt)
    with open(folder / "attempts.jsonl", "ab+") as file:
        file.seek(max(0, file.tell() - 1))
        incomplete = file.read() not in (b"", b"\n")  # after a kill or on a full disk
        file.write(b"\n" * incomplete + json.dumps(row).encode() + b"\n")


def forget(run: StudyRun) -> None:
    """Clear the recorded attempts of a run, so that a failed run is started again."""
    attempts = run.folder / "attempts.jsonl"
    if attempts.exists():
        attempts.write_text("")
        if run.store:
            run.store.send(run.folder)


def failures(folder: Path) -> list[dict]:
    """Return the failed attempts after the last attempt that did not fail."""
    found = []
    for row in read_attempts(folder):
        found = [*found, row] if row["state"] == FAILED else []
    return found


def state(run: StudyRun) -> tuple[str, str]:
    """Return the state of a run according to its folder, and the error of a failed run.

    The state is `FINISHED`, `RUNNING`, `FAILED`, `INTERRUPTED` or `MISSING` (never started).
    """
    if read_metrics(run.result) is not None:
        return FINISHED, ""
    if _is_running(run.folder):
        return RUNNING, ""
    if past := failures(run.folder):
        return FAILED, past[-1]["error"]
    return (INTERRUPTED if (run.folder / "run.json").exists() else MISSING), ""


def _is_running(folder: Path) -> bool:
    """Return whether a process holds the run's lock, as visible from this machine."""
    try:
        with open(folder / ".study.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True
