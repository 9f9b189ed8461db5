"""Training in two processes: failures of one of them, and resuming after a kill."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import detector_processes, processes
from tests.support.detector_runs import DIGITS, overrides


@pytest.fixture
def start(tmp_path, resnet18_backbone):
    def call(name, *options, prepare=None):
        folder = {"DATASETS.TEST": "()", "SOLVER.MAX_ITER": "4"}
        words = overrides(tmp_path / "run", resnet18_backbone, **folder)
        words = ["--config", DIGITS, "--num-gpus", 2, *options, *words]
        module = "tests.support.detector_processes"
        return processes.start(tmp_path / name, 1, module, *words, prepare=prepare)

    return call


def test_nan_in_one_process_is_one_line(tmp_path, start):
    started = start("log", prepare=detector_processes.nan_in_process_1)
    (done,) = processes.finish(tmp_path / "log", started)
    assert done.code == 2, done
    (error,) = done.errors
    assert error.startswith("error: training diverged at iteration 1: ")
    assert done.stderr.splitlines()[-1] == error
    assert list((tmp_path / "run").glob("not_finite_iter1_rank?.pth"))


def test_a_killed_process_ends_the_run_which_resumes(tmp_path, start):
    started, last = start("killed"), tmp_path / "run" / "last_checkpoint"
    deadline = time.monotonic() + 200
    while not last.exists():
        assert time.monotonic() < deadline and started[0].is_alive()
        time.sleep(0.01)
    pid = started[0].pid
    second = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[1]
    os.kill(int(second), signal.SIGKILL)
    killed = time.monotonic()
    (done,) = processes.finish(tmp_path / "killed", started)
    assert time.monotonic() - killed < 60
    assert done.code == 256 - signal.SIGKILL, done
    assert done.errors[-1].startswith("error: process 1 was killed by SIGKILL.")
    (done,) = processes.finish(tmp_path / "resumed", start("resumed", "--resume"))
    assert done.code == 0, done
    assert last.read_text() == "model_final.pth"
