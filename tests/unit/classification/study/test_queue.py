"""Execution of a study: order, failures, stops, and sharing of CPUs and GPUs."""

import json
import os
import signal
import time

import pytest

from classification.study import __main__ as study
from classification.study import execute
from classification.study.execute import BUSY, FAILED, FINISHED, INTERRUPTED, LOST, Attempt, state
from classification.study.executors import Local, visible_gpus
from classification.study.file import read_study
from classification.study.queue import Queue
from classification.study.summary import table
from tests.support.study_drivers import driver, wait_for
from tests.support.study_runs import alive, allow, starts, toy, write


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    allow(monkeypatch)


class Fake:
    """Executes nothing: outcomes are given."""

    def __init__(self, outcomes: dict, slots: int = 1):
        self.outcomes, self.slots, self.going, self.order, self.stopped = outcomes, slots, [], [], 0

    def has_room(self, run):
        return len(self.going) < self.slots

    def start(self, run):
        self.going.append(run)
        self.order.append(run.labels["number"])

    def wait(self, seconds):
        if not self.going:
            time.sleep(0.01)
            return []
        run = self.going.pop(0)
        outcome = self.outcomes[run.labels["number"]].pop(0)
        run.folder.mkdir(parents=True, exist_ok=True)
        if outcome.state not in (FINISHED, LOST):
            execute.record(run.folder, outcome)
        return [(run, outcome)]

    def stop(self):
        self.stopped += 1

    def close(self):
        pass


MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."


def bad(code=1, error="it failed"):
    return Attempt(FAILED, code, error)


def lost():
    return Attempt(LOST, 1, "NodeDiedError: gone")


@pytest.mark.parametrize(
    "outcomes, order, finished, failed",
    [
        ([[Attempt(FINISHED)]] * 2, "01", "01", {}),
        ([[bad(), Attempt(FINISHED)], [Attempt(FINISHED)]], "010", "01", {}),
        (
            [[bad(), bad(), bad(error="the last")], [Attempt(FINISHED)]],
            "0100",
            "1",
            {"0": "the last"},
        ),
        ([[bad(2, "mistake")], [Attempt(FINISHED)]], "01", "1", {"0": "mistake"}),
        ([[bad(1, MEMORY)], [Attempt(FINISHED)]], "01", "1", {"0": MEMORY}),
        ([[Attempt(BUSY), Attempt(FINISHED)], [Attempt(FINISHED)]], "010", "01", {}),
        ([[Attempt(INTERRUPTED, 75), Attempt(FINISHED)], [Attempt(FINISHED)]], None, "01", {}),
        ([[lost()] * 4 + [Attempt(FINISHED)], [Attempt(FINISHED)]], "000001", "01", {}),
        ([[lost(), bad(), bad(), Attempt(FINISHED)], [Attempt(FINISHED)]], None, "01", {}),
        (
            [[lost()] * 5, [Attempt(FINISHED)]],
            None,
            "1",
            {"0": "cluster lost 5 times: NodeDiedError: gone"},
        ),
    ],
)
def test_failures_are_tried_again_later(tmp_path, monkeypatch, outcomes, order, finished, failed):
    monkeypatch.setattr("classification.study.queue.MAX_LOSSES", 5)
    runs = read_study(toy(tmp_path, 2))
    executor = Fake({str(i): list(rows) for i, rows in enumerate(outcomes)})
    queue = Queue(runs, executor, pause=0.05)
    assert queue.work() and executor.order == (list(order) if order else executor.order)
    names = {run.folder: run.labels["number"] for run in runs}
    assert sorted(names[f] for f in queue.finished) == list(finished)
    assert {names[f]: error for f, error in queue.failed.items()} == failed


def test_pauses_double(tmp_path):
    runs = read_study(toy(tmp_path, 1))
    times = []
    queue = Queue(
        runs,
        Fake({"0": [bad(), bad(), bad()]}),
        pause=0.2,
        on_end=lambda *_: times.append(time.time()),
    )
    queue.work()
    first, second = times[1] - times[0], times[2] - times[1]
    assert 0.2 <= first < 0.38 and 0.4 <= second < 0.8


def test_what_needs_a_failed_run_is_given_up(tmp_path):
    parts = [
        {
            "name": "a",
            "command": "toy",
            "common": {"value": "{x}", "mistake": True},
            "axes": {"x": [0, 1]},
            "runs": [],
        },
        {
            "name": "b",
            "command": "toy",
            "common": {"value": 1, "needs": "{a}/result.json"},
            "axes": {"x": [0, 1]},
        },
        {
            "name": "c",
            "command": "toy",
            "common": {"value": 2, "needs": "{b}/result.json"},
            "axes": {"x": [0, 1]},
        },
    ]
    file = write(tmp_path / "s.yaml", json.dumps({"output": str(tmp_path / "o"), "parts": parts}))
    runs = read_study(file)
    queue = Queue(runs, Local(1))
    assert queue.work() and len(queue.failed) == 6 and not queue.finished
    assert queue.failed[runs[0].folder] == "nothing helps"
    assert queue.failed[runs[4].folder] == f"needs {runs[2].folder.name}, which failed"
    assert state(runs[0])[0] == "failed" and state(runs[4]) == ("missing", "")

    parts[0]["common"].pop("mistake")
    runs = read_study(write(file, json.dumps(json.loads(file.read_text()) | {"parts": parts})))
    queue = Queue(runs, Local(2))
    assert queue.work() and len(queue.finished) == 6
    assert all(len(starts(run)) == 1 for run in runs)


def test_a_study_from_the_first_run_to_the_last(tmp_path, capsys):
    file = toy(tmp_path, 4)
    contents = file.read_text().replace("common:", "common:\n  fails: 1")
    file.write_text(contents)
    study.main(["run", str(file), "--pause", "0.1", "--jobs", "2", "--num-gpus", "0"])
    out = capsys.readouterr().out
    assert out.count("failed in") == 4 and out.count("finished in") == 4 and "(not yet)" in out
    assert "| 3 | 3 |" in out
    runs = read_study(file)
    assert [len(starts(run)) for run in runs] == [2] * 4
    study.main(["run", str(file)])
    assert [len(starts(run)) for run in runs] == [2] * 4
    study.main(["status", str(file)])
    assert capsys.readouterr().out.endswith("4 runs: 4 finished\n")


def test_failed_runs_wait_for_retry(tmp_path, capsys):
    file = toy(tmp_path, 1, fails=3)
    for action in ("run", "run"):
        with pytest.raises(SystemExit) as stop:
            study.main([action, str(file), "--attempts", "1"])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and "failed: toy, 0: not yet  (see " in err
        assert "1 of 1 runs failed. Fix the causes above, then run: " in err
        assert f"robust-backbones study retry {file}" in err
    (run,) = read_study(file)
    assert len(starts(run)) == 1
    study.main(["status", str(file)])
    assert "failed       toy, 0: not yet" in capsys.readouterr().out
    study.main(["retry", str(file), "--attempts", "9", "--pause", "0.05"])
    assert len(starts(run)) == 4 and state(run) == ("finished", "")


def patch_gpus(monkeypatch, count: int) -> None:
    """Pretend that this machine has 8 cores and `count` GPUs."""
    for name in ("OMP_NUM_THREADS", "ROBUST_BACKBONES_CORES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


@pytest.mark.parametrize(
    ("found", "gpus", "words", "shares", "threads"),
    [
        (4, 1, (), ["0", "1", "2", "3"], "2"),
        (4, 2, (), ["0,1", "0,1", "2,3", "2,3"], "2"),
        (4, 0, (), ["", "", "", ""], "8"),  # nobody counts GPUs
        (2, 0.5, (), ["0", "0", "1", "1"], "2"),
        (2, 1, ("--jobs", "1"), ["0", "0", "0", "0"], "8"),
        (4, 1, ("--num-gpus", "1"), ["0", "0", "0", "0"], "8"),
        (4, 1, ("--num-gpus", "0"), ["", "", "", ""], "8"),
        (2, 5, (), ["0,1"] * 4, "4"),  # no machine has more
        (0, 1, (), [""] * 4, "8"),
        (0, 1, ("--jobs", "4"), [""] * 4, "2"),
    ],
)
def test_gpus_and_threads_of_four_runs(
    tmp_path, monkeypatch, capsys, found, gpus, words, shares, threads
):
    patch_gpus(monkeypatch, found)
    file = toy(tmp_path, 4, sleep=0.3)
    file.write_text(file.read_text() + f"resources: {{gpus: {gpus}}}\n")
    study.main(["run", str(file), *words])
    results = [json.loads(run.result.read_text()) for run in read_study(file)]
    assert sorted(each["gpus"] for each in results) == shares
    assert {each["threads"] for each in results} == {threads}
    # All processes of a run share its cores.
    processes = max(1, len(shares[0].split(",")))
    assert {each["cores"] for each in results} == {str(processes * int(threads))}
    assert ("runs with gpus: 5 use 2" in capsys.readouterr().out) == (gpus == 5)


@pytest.mark.parametrize(
    ("found", "words", "message"),
    [
        (2, "4", "--num-gpus 4: 2 GPUs are visible on this machine. Use --num-gpus 2."),
        (1, "2", "--num-gpus 2: 1 GPU is visible on this machine. Use --num-gpus 1."),
        (
            0,
            "1",
            "--num-gpus 1: no GPUs are visible on this machine. Omit --num-gpus to use the CPU.",
        ),
    ],
)
def test_more_gpus_than_the_machine_has(tmp_path, monkeypatch, capsys, found, words, message):
    patch_gpus(monkeypatch, found)
    file = toy(tmp_path, 1)
    file.write_text(file.read_text() + "resources: {gpus: 1}\n")
    with pytest.raises(SystemExit):
        study.main(["run", str(file), "--num-gpus", words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [("4,5", ["4", "5"]), ("", []), ("-1", []), ("2,-1,3", ["2"]), ("GPU-a", ["GPU-a"])],
)
def test_the_gpus_of_this_process_are_shared_out(monkeypatch, variable, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == gpus


def test_half_gpus_are_used_two_at_a_time(tmp_path):
    (tmp_path / "x").mkdir()
    runs = read_study(toy(tmp_path / "x", 3))
    executor = Local(8, ["0"])
    for run, part in zip(runs, (0.5, 0.5, 0.5), strict=True):
        object.__setattr__(run, "gpus", part)
    assert executor.has_room(runs[0])
    executor.start(runs[0])
    assert executor.has_room(runs[1])
    executor.start(runs[1])
    assert not executor.has_room(runs[2])
    while not executor.wait(0.1):
        pass
    assert executor.has_room(runs[2])
    while executor._assigned:
        executor.wait(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_has_its_runs_save_themselves(tmp_path, number):
    file = toy(tmp_path, 3, sleep=30)
    runs = read_study(file)
    process = driver("run", file, "--num-gpus", "0")
    wait_for(lambda: starts(runs[0]))
    time.sleep(0.3)  # until it has its handler
    assert state(runs[0]) == ("running", "")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped. Run the same command again to resume." in out
    assert (runs[0].folder / "saved").exists() and not alive(starts(runs[0])[0])
    assert [state(run)[0] for run in runs] == ["interrupted", "missing", "missing"]
    assert execute.failures(runs[0].folder) == []


def test_a_killed_study_leaves_nothing_to_be_made_twice(tmp_path):
    file = toy(tmp_path, 2, sleep=2)
    runs = read_study(file)
    process = driver("run", file, "--num-gpus", "0")
    wait_for(lambda: starts(runs[0]))
    process.kill()
    process.wait()
    assert alive(starts(runs[0])[0]) and state(runs[0])[0] == "running"
    again = driver("run", file, "--num-gpus", "0", "--pause", "0.3")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "busy" in out
    assert [len(starts(run)) for run in runs] == [1, 1]


@pytest.mark.parametrize(
    "log, code, expected",
    [
        ("x\nerror: no weights\nbye\n", 2, "no weights"),
        ("error: out of GPU memory\nRuntimeError: closed by peer\n", 2, "out of GPU memory"),
        ("a\nValueError: bad\n", 1, "ValueError: bad"),
        ("a\n", -9, "killed by signal 9 after: a"),
        ("", 3, "exited with code 3 and no output"),
        ("", 0, "no result"),
        ("done\n", 0, "done"),
    ],
)
def test_last_words(tmp_path, log, code, expected):
    (tmp_path / "console.txt").write_text(log)
    assert execute.last_error(tmp_path / "console.txt", code) == expected


def test_torn_notes_and_broken_results_are_not_trusted(tmp_path):
    (run,) = read_study(toy(tmp_path, 1))
    run.folder.mkdir(parents=True)
    (run.folder / "attempts.jsonl").write_text('{"state": "failed", "code": 1, "error": "e"}\n{"st')
    assert len(execute.failures(run.folder)) == 1
    run.result.write_text('{"metr')
    assert state(run) == ("failed", "e")
    assert Queue([run], Local(1)).work() and state(run) == ("finished", "")
    assert "| 0 | 0 |" in table([run])
