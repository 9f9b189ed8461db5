"""Measure a device with pretraining commands: resuming, and the message about memory."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from robust_backbones.checkpoint.io import load_file
from robust_backbones.core.measurements import SKIPPED, Line, at_most, expect
from robust_backbones.core.resources import python_environment

TINY = ["--dataset", "digits", "--arch", "resnet18", "--image-size", "32"]


def resuming(device: torch.device, full: bool) -> Iterator[Line]:
    """Kill a deterministic pretraining, resume it, and compare it with an uninterrupted one."""
    options = [*TINY, "--device", str(device), "--deterministic", "--save-seconds", "0.5"]
    options += (
        []
        if full
        else ["--limit", "96", "--test-limit", "20", "--epochs", "2", "--eval-steps", "2"]
    )
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        _finish(_pretrain(whole, options))
        run = _pretrain(killed, options)
        while run.poll() is None and not (killed / "checkpoint.pt").exists():
            time.sleep(0.01)
        time.sleep(0.3 * full)  # into a later step; the small run would be over by then
        run.send_signal(signal.SIGKILL)
        run.communicate()
        killed_it = run.returncode == -signal.SIGKILL
        yield expect("killed while running", str(killed_it), "True", killed_it)
        _finish(_pretrain(killed, [*options, "--resume", "must"]))
        one, other = (load_file(p / "checkpoint.pt")["model"] for p in (whole, killed))
        apart = max(float((one[k].double() - other[k].double()).abs().max()) for k in one)
        yield at_most("largest difference of a weight after resuming", apart, 0.0)


def out_of_memory(device: torch.device, full: bool) -> Iterator[Line]:
    """Start a run with a batch that is far too large. One line must name the fix."""
    if device.type == "cpu":
        yield Line("batch of 1,400 images at 384 pixels", "needs a GPU", state=SKIPPED)
        return
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--dataset",
            "digits",
            "--arch",
            "resnet152",
            "--image-size",
            "384",
            "--batch-size",
            "1400",
            "--eps",
            "0",
            "--device",
            str(device),
        ]
        run = _pretrain(Path(folder, "run"), options)
        errors = run.communicate()[1].strip().splitlines() or [""]
    yield expect("exit code", run.returncode, "2", run.returncode == 2)
    named = len(errors) == 1 and "--accumulate" in errors[0] and "--batch-size" in errors[0]
    said = f"{len(errors)} lines, the last: {errors[-1][:200]}"
    yield expect("message", said, "one line that names --accumulate and --batch-size", named)


def _pretrain(output: Path, options: list[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "classification.pretrain", "--output", str(output), *options]
    return subprocess.Popen(
        words,
        env=python_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(run: subprocess.Popen[str]) -> None:
    """Wait for a run that must succeed.

    Raises:
        RuntimeError: the run failed; the message has the last line that it printed.
    """
    errors = run.communicate()[1].strip().splitlines() or [""]
    if run.returncode:
        raise RuntimeError(f"exit code {run.returncode}: {errors[-1]}")


ROWS = {row.__name__: row for row in (resuming, out_of_memory)}
