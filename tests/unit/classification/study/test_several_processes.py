"""A run on two GPUs: two processes that are killed, stopped and resumed. Here they use the CPU."""

import json
import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from classification.study import execute
from classification.study.executors import Local
from classification.study.file import read_study
from classification.study.queue import Queue
from classification.training import torchrun
from tests.support.study_drivers import wait_for
from tests.support.study_runs import alive, write

PRETRAIN = {
    "dataset": "digits",
    "arch": "shufflenet_v2_x1_0",
    "eps": 0,
    "limit": 64,
    "test-limit": 20,
    "epochs": 20,
    "batch-size": "{batch}",
    "eval-steps": 1,
    "device": "cpu",
    "save-seconds": 0,
}


def study(tmp_path: Path, batch: int) -> list:
    contents = {"output": str(tmp_path / "out"), "command": "pretrain", "common": PRETRAIN}
    contents |= {"resources": {"gpus": 2}, "axes": {"batch": [batch]}}
    return read_study(write(tmp_path / "s.yaml", contents))


def queue(runs: list) -> Queue:
    return Queue(runs, Local(1, ["0", "1"]), pause=0.1)


def processes_of(parent: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        found += [int(word) for word in file.read_text().split()]
    return found


@pytest.mark.slow
def test_two_processes_that_are_killed_and_stopped_resume(tmp_path):
    """The launcher of the first start is killed, the second start is stopped, the third ends."""
    (run,) = study(tmp_path, 16)
    checkpoint = run.folder / "checkpoint.pt"
    before, saved, workers = processes_of(os.getpid()), [], []

    def kill_then_stop() -> bool:
        launchers = [pid for pid in processes_of(os.getpid()) if pid not in before]
        if not checkpoint.exists() or not launchers:
            return False
        if not saved:
            saved.append(checkpoint.stat().st_mtime_ns)
            workers.extend(processes_of(launchers[0]))
            os.kill(launchers[0], signal.SIGKILL)
            wait_for(lambda: not any(map(alive, workers)))
            saved.append(checkpoint.stat().st_mtime_ns)
        return checkpoint.stat().st_mtime_ns > saved[-1]  # the second start has trained

    assert not queue([run]).work(kill_then_stop)
    assert len(workers) == 2
    attempts = [(a["state"], a["code"]) for a in execute.read_attempts(run.folder)]
    assert attempts == [("failed", -signal.SIGKILL), ("interrupted", 75)]
    assert execute.state(run) == ("interrupted", "")
    assert queue([run]).work() and execute.state(run) == ("finished", "")
    assert json.loads(run.result.read_text())["hardware"]["processes"] == 2
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 21))


@pytest.mark.slow
def test_invalid_input_of_two_processes_is_final(tmp_path):
    (run,) = study(tmp_path, 15)
    queue([run]).work()
    (attempt,) = execute.read_attempts(run.folder)
    assert (attempt["state"], attempt["code"]) == ("failed", 2)
    assert attempt["error"].startswith("--batch-size 15 cannot be split into 2 equal parts")


@pytest.mark.parametrize(
    ("codes", "expected", "printed"),
    [
        ({0: 1, 1: 2}, 2, ""),
        ({0: 75, 1: 75}, 75, ""),
        ({0: 75, 1: 2}, 2, ""),
        ({0: 1}, 1, ""),
        ({1: -9}, 1, "error: process 1 was killed by signal 9\n"),
    ],
)
def test_the_exit_code_is_that_of_the_processes(monkeypatch, capsys, codes, expected, printed):
    failures = {rank: ProcessFailure(rank, 100, code, "none") for rank, code in codes.items()}

    def fail(args):
        raise ChildFailedError("run", failures)

    monkeypatch.setattr(torchrun, "run", fail)
    with pytest.raises(SystemExit) as stop:
        torchrun.main(["--standalone", "--nproc-per-node", "2", "-m", "nothing"])
    assert stop.value.code == expected and capsys.readouterr().err == printed
