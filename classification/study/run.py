"""One run of a study: made by whoever is asked to, on any machine, and what is known of it.

In its folder lie `run.json`, what it is; `log.txt`, what it said; `attempts.jsonl`, how its
starts ended; and `.study.lock`, which the run itself holds: it stays locked when the process that
started it is killed, so that nobody starts it a second time beside it.
"""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classification.study.commands import metrics
from classification.study.file import Run
from robust_backbones.core.files import atomic
from robust_backbones.core.signals import EXIT_RESUMABLE

FINISHED, FAILED, INTERRUPTED, BUSY = "finished", "failed", "interrupted", "busy"
MISTAKE = 2  # exit code of what will not get better by another try
POLL = 0.05  # seconds between two looks at a running process, at first; up to a second later
GRACE = 600  # seconds that a stopped run has to save itself


@dataclass(frozen=True)
class Outcome:
    """How a start of a run ended.

    Attributes:
        state: `"finished"`, `"failed"`, `"interrupted"` (asked to stop, it goes on next time) or
            `"busy"` (another process is at it).
        code: exit code of the command that ended it; 0 where all went well.
        error: what it said last.
        seconds: wall time of this start.
        host: where it ran.
    """

    state: str
    code: int = 0
    error: str = ""
    seconds: float = 0.0
    host: str = ""


def execute(
    run: Run,
    environment: dict[str, str] | None = None,
    folder: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Make a run, or go on with it; a finished one is left alone.

    Args:
        environment: variables for its processes, beside those of this one.
        folder: to work in, that the run's paths are relative to.
        stopping: asked again and again; True sends the run a SIGTERM and waits for its end.
    """
    place = Path(folder or ".")
    target, began = place / run.folder, time.monotonic()
    if run.store:
        for each in (*run.needs, run.folder):
            run.store.fetch(each)
    if metrics(place / run.result) is not None:
        return Outcome(FINISHED)
    target.mkdir(parents=True, exist_ok=True)
    with open(target / ".study.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Outcome(BUSY, error=f"another process is at work in {run.folder}")
        describe(run, target)
        code = 0
        for line in run.lines:
            code = _process(line, environment or {}, place, target / "log.txt", lock, stopping)
            if code:
                break
    state, error = FINISHED, ""
    if code == EXIT_RESUMABLE or code and stopping():
        state = INTERRUPTED
    elif code or metrics(place / run.result) is None:
        state, error = FAILED, last_words(target / "log.txt", code)
    outcome = Outcome(state, code, error, round(time.monotonic() - began, 3), socket.gethostname())
    if state != FINISHED:
        with contextlib.suppress(OSError):  # a full disk: what the outcome says is not lost
            _note(target, outcome)
    if run.store:
        run.store.send(run.folder)
    return outcome


def describe(run: Run, target: Path) -> None:
    """Write `run.json`, once: the report and `status` read it."""
    path = target / "run.json"
    if not path.exists():
        contents = {
            "part": run.part,
            "labels": run.labels,
            "command": run.command,
            "options": run.options,
            "id": run.id,
            "gpus": run.gpus,
        }
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def _process(
    words: list[str],
    environment: dict,
    place: Path,
    log: Path,
    lock: Any,
    stopping: Callable[[], bool],
) -> int:
    """Run a command to its end; negative numbers are the signal that ended it."""
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=place,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        pause, asked = POLL, None
        while process.poll() is None:
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                pause = min(1.0, 1.5 * pause)
            if asked is None and stopping():
                process.terminate()
                asked = time.monotonic()
            if asked is not None and time.monotonic() - asked > GRACE:
                process.kill()
    return process.returncode


def last_words(log: Path, code: int) -> str:
    """The last line of a log that says what is wrong, else the last one."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if "error: " in line.lower()]
    if code < 0:
        return f"killed by signal {-code}" + (f" after: {lines[-1]}" if lines else "")
    last = (errors or lines or [f"exit code {code} and no word" if code else "no result"])[-1]
    return last.removeprefix("error: ")


def attempts(folder: Path) -> list[dict]:
    """How earlier starts ended, oldest first; a torn last line is left out."""
    try:
        lines = (folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return found


def _note(folder: Path, outcome: Outcome) -> None:
    row = {
        "time": time.time(),
        "state": outcome.state,
        "code": outcome.code,
        "error": outcome.error,
        "seconds": outcome.seconds,
        "host": outcome.host,
    }
    with open(folder / "attempts.jsonl", "ab+") as file:
        file.seek(max(0, file.tell() - 1))
        torn = file.read() not in (b"", b"\n")  # by a kill or a full disk
        file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")


def forget(run: Run) -> None:
    """Earlier failures: it may be tried anew."""
    notes = run.folder / "attempts.jsonl"
    if notes.exists():
        notes.write_text("")
        if run.store:
            run.store.send(run.folder)


def failures(folder: Path) -> list[dict]:
    """The starts that failed since the last that did not."""
    found = []
    for row in attempts(folder):
        found = [*found, row] if row["state"] == FAILED else []
    return found


def running(folder: Path) -> bool:
    """Whether a process is at work in it, as far as this machine can tell."""
    try:
        with open(folder / ".study.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True
