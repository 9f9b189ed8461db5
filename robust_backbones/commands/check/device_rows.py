"""Measure correctness, speed and memory of a device, row by row.

Each row runs in its own process with a time limit. A row that fails or hangs does not stop the next
one.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

from robust_backbones.commands.check.rows import ROWS, Row
from robust_backbones.commands.check.steps import NO_DETECTRON2, Record
from robust_backbones.core import measurements
from robust_backbones.core.measurements import FAILED, SKIPPED
from robust_backbones.core.resources import python_environment

LEAST = 5.0  # a row does not start with less time, s
LOG = 4000  # characters of a failed row's output to keep


def measure(device: str, names: tuple[str, ...], budget: float) -> Iterator[Record]:
    """Run rows, and yield each measurement as soon as it is taken.

    Args:
        device: `cpu` for small sizes, or a GPU.
        names: keys of `ROWS`.
        budget: time for all rows, s. Rows that do not end within it are skipped.
    """
    end = time.monotonic() + budget
    for name in names:
        row, left = ROWS[name], end - time.monotonic()
        if row.detectron2 and importlib.util.find_spec("detectron2") is None:
            yield Record(name, SKIPPED, NO_DETECTRON2)
        elif left < LEAST:
            yield Record(name, SKIPPED, f"--budget {budget:g} is spent")
        else:
            limit = row.seconds * (3 if device == "cpu" else 1)  # other programs may share a CPU
            yield from run_row(name, row, device, limit, left)


def run_row(name: str, row: Row, device: str, limit: float, left: float) -> Iterator[Record]:
    """Run a row in its own process.

    Args:
        name, row: a key of `ROWS` and its value.
        device: `cpu` or a GPU.
        limit: time after which the row is stopped and has failed, s.
        left: time after which the row is stopped and skipped, because the budget is spent, s.

    Yields:
        Its measurements, and another record if the process fails or is stopped.
    """
    began = last = time.monotonic()
    late, output = threading.Event(), ""
    code = f"from {measurements.__name__} import main; from {row.module} import ROWS; main(ROWS)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, name, device],
        env=python_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started

    timer = threading.Timer(min(limit, left), stop)
    timer.start()
    try:
        for text in process.stdout or ():
            line = measurements.read(text)
            if line is None:
                output = (output + text)[-LOG:]
                continue
            now = time.monotonic()
            yield Record(
                f"{name}: {line.name}", line.state, line.shown, round(now - last, 1), asdict(line)
            )
            last = now
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:  # this process was interrupted
            os.killpg(process.pid, signal.SIGKILL)
    took = round(time.monotonic() - began, 1)
    if late.is_set() and left < limit:
        yield Record(name, SKIPPED, f"stopped after {left:.0f} s: --budget is spent", took)
    elif late.is_set():
        yield Record(name, FAILED, f"stopped after {limit:.0f} s", took, {"log": output})
    elif status:
        said = (output.strip().splitlines() or ["no output"])[-1][:200]
        yield Record(name, FAILED, f"exit code {status}: {said}", took, {"log": output})
