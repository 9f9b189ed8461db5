"""One process with a batch against two processes with half of it each, with gloo on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from classification.datasets.open import open_split
from classification.training import distributed
from robust_backbones.core.errors import UserError
from tests.support import ROOT, process_faults, processes
from tests.support.networks import random_network
from tests.support.small_data import write_tree
from tests.support.transfer_runs import FAST, TINY, table, write_network


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Numbers of a single process, and of the first and the second of two processes."""
    folder, found = tmp_path_factory.mktemp("sums"), []
    for count in (1, 2):
        done = processes.run(
            folder / f"log{count}", count, "tests.support.distributed_sums", folder / str(count)
        )
        assert [process.code for process in done] == [0] * count, done
        files = [folder / f"{count}.{rank}" for rank in range(count)]
        found += [json.loads(file.read_text()) for file in files]
    return found


CASES = ["pgd", "pgd, sync", "standard, sync", "trades, sync", "pgd, pieces", "pgd, ema"]


@pytest.mark.parametrize("case", CASES)
def test_two_halves_are_one_batch(sums, case):
    one, first, second = (s[case] for s in sums)
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(
            torch.tensor(first["weights"][name]), torch.tensor(weight), rtol=1e-3, atol=1e-5
        )
        assert first["weights"][name] == second["weights"][name], name  # bit for bit


def test_numbers_are_shared(sums):
    one, first, second = sums
    assert one["total"] == [1, 0] and first["total"] == second["total"] == [2, 1]
    assert first["shared"] == second["shared"] == [0, "first"]


def test_synchronized_batchnorm_of_one_process_is_plain_batchnorm():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    names = list(plain.state_dict())
    synced = distributed.sync_batchnorm(plain, torch.device("cpu"))
    assert list(synced.state_dict()) == names and isinstance(synced[1], nn.BatchNorm2d)
    x = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(
        synced.eval()(x),
        nn.functional.batch_norm(
            plain[0](x), plain[1].running_mean, plain[1].running_var, plain[1].weight, plain[1].bias
        ),
    )


# Case -> the exit codes of two processes, and the start of the last line of the only message.
FAILURES = {
    "an error of process 1": ((2, 2), "error: refused by one process"),
    "an error of process 0": ((2, 2), "error: refused by one process"),
    "an error of process 0 for all": ((2, 2), "error: refused by one process"),
    "a bug of process 0 for all": ((1, 1), "KeyError: 'missing'"),
    "the same error in all": ((2, 2), "error: refused by one process"),
    "a full disk": ((2, 2), "error: cannot write log.txt: No space left on device."),
    "too little memory": ((2, 2), "error: --batch-size "),
    "a killed process": ((1, -signal.SIGKILL), "error: process 0 lost the connection to another"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_one_process_prints_the_error_and_all_end(tmp_path, case):
    codes, message = FAILURES[case]
    started = time.monotonic()
    done = processes.run(
        tmp_path / "log", 2, "tests.support.process_faults", case, tmp_path / "run"
    )
    assert tuple(process.code for process in done) == codes, done
    texts = [process.stderr for process in done if process.stderr]
    assert len(texts) == 1, done
    assert texts[0].splitlines()[-1].startswith(message)
    reports = [
        json.loads(path.read_text())["message"] for path in (tmp_path / "log").glob("*.json")
    ]
    first = min(reports, key=lambda report: int(report["extraInfo"]["timestamp"]))
    assert first["extraInfo"]["py_callstack"] == texts[0].rstrip()
    assert time.monotonic() - started < 60  # far below the time-out


def test_a_closed_pipe_of_process_0_ends_all_silently(tmp_path):
    done = processes.run(tmp_path / "log", 2, "tests.support.process_faults", "a closed pipe")
    assert [(process.code, process.stderr) for process in done] == [(141, "")] * 2


PRETRAIN = ["--limit", 32, "--test-limit", 21, "--epochs", 1, "--eps", 0, "--eval-steps", 1]
PRETRAIN += ["--arch", "resnet18", "--lr", 0.01, "--device", "cpu", "--sync-bn"]


def pretrain(log, count, folder, *options, prepare=None):
    words = [*PRETRAIN, "--dataset", "digits", "--batch-size", 16, "--output", folder, *options]
    return processes.start(log, count, "classification.pretrain.__main__", *words, prepare=prepare)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Metrics of the same run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    (done,) = processes.finish(folder / "log", pretrain(folder / "log", 1, folder / "run"))
    assert done.code == 0, done
    return json.loads((folder / "run" / "result.json").read_text())["metrics"]


def test_a_killed_run_resumes_with_another_number_of_processes(tmp_path, alone):
    """Losses equal those of one process, and each of 21 test images counts once."""
    folder, log = tmp_path / "run", tmp_path / "log"
    started = pretrain(log / "2", 2, folder, "--save-seconds", 0)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists():
        assert time.monotonic() < deadline and started[1].is_alive()
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGKILL)
    done = processes.finish(log / "2", started)
    assert [process.code for process in done] == [1, -signal.SIGKILL]
    assert not (folder / "result.json").exists()
    done = processes.finish(log / "4", pretrain(log / "4", 4, folder, "--resume"))
    assert [process.code for process in done] == [0] * 4, done
    result = json.loads((folder / "result.json").read_text())
    found = result["metrics"]
    assert result["hardware"]["processes"] == 4
    assert found["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
    assert found["clean_loss"] == pytest.approx(alone["clean_loss"], rel=0.02)
    assert found["clean_top1"] * 21 / 100 == pytest.approx(round(found["clean_top1"] * 0.21))


def test_nan_in_one_process(tmp_path):
    started = pretrain(
        tmp_path / "log", 2, tmp_path / "run", prepare=process_faults.nan_in_process_1
    )
    done = processes.finish(tmp_path / "log", started)
    assert [process.code for process in done] == [2, 2], done
    (error,) = [line for process in done for line in process.errors]
    assert error.startswith("error: step 2 of epoch 1: ")
    assert not [process for process in done if "Traceback" in process.stderr]


def test_torchrun_shows_the_error_of_one_process_as_the_root_cause(tmp_path):
    """Only process 1 reads the damaged image, the last one of the test images."""
    data = write_tree(tmp_path / "data", {"train": 8, "test": 3})
    bad = data / "test" / "cow" / "002.png"
    bad.write_bytes(b"damaged")
    words = [*PRETRAIN, "--data", data, "--image-size", 32, "--test-limit", 9, "--limit", 24]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", "-m", "classification.pretrain", *map(str, words)]
        + ["--dataset", "folder", "--batch-size", "8", "--output", str(tmp_path / "run")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stderr.replace("\r", "\n").splitlines()
    (error,) = [line for line in lines if line.startswith("error:")]
    assert str(bad) in error
    report = done.stderr.partition("Root Cause")[2]
    assert "exitcode  : 2 " in report and f"traceback : {error}" in report, report


def test_a_batch_that_cannot_be_divided(tmp_path):
    started = pretrain(tmp_path / "log", 2, tmp_path / "run", "--batch-size", 15)
    done = processes.finish(tmp_path / "log", started)
    assert [process.code for process in done] == [2, 2]
    (error,) = [line for process in done for line in process.errors]
    assert "--batch-size 15 cannot be split into 2 equal parts" in error


@pytest.mark.parametrize(
    ("mode", "refused"),
    [
        (["--mode", "full-network", "--lr", "0.01", *FAST], None),
        (["--probe", "sgd", "--lr", "0.01", *FAST], None),
        ([], "--probe logistic runs in one process. Start it without torchrun"),
    ],
)
def test_transfer_in_two_processes(tmp_path, mode, refused):
    """Each test image is predicted once, in order. A probe refuses a second process."""
    weights = write_network(tmp_path / "w.pt", "shufflenet_v2_x1_0")
    words = [*TINY, "--test-limit", 31, "--weights", weights, "--output", tmp_path / "run", *mode]
    done = processes.run(tmp_path / "log", 2, "classification.transfer.__main__", *words)
    if refused:
        assert [process.code for process in done] == [2, 2]
        (error,) = [line for process in done for line in process.errors]
        assert refused in error
        return
    assert [process.code for process in done] == [0, 0], done
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["hardware"]["processes"] == 2 and result["metrics"]["images"] == 31
    images = table(tmp_path / "run" / "per_image.csv")[1:]
    labels = open_split("digits", "test", limit=31).labels.tolist()
    assert [int(row[1]) for row in images] == labels


def test_robustness_eval_in_two_processes(tmp_path):
    """Two processes share three batches, and find what one process finds."""
    torch.save(random_network("shufflenet_v2_x1_0", 10).state_dict(), tmp_path / "w.pt")
    words = ["--weights", tmp_path / "w.pt", "--dataset", "digits", "--images", "10"]
    words += ["--batch-size", "4", "--steps", "2", "--eps", "1", "--device", "cpu", "--output"]
    module, found = "classification.robustness_eval.__main__", []
    for count in (1, 2):
        folder = tmp_path / str(count)
        done = processes.run(tmp_path / f"log{count}", count, module, *words, folder)
        assert [process.code for process in done] == [0] * count, done
        result = json.loads((folder / "result.json").read_text())
        assert result["hardware"]["processes"] == count
        rows = result["metrics"]["attacks"].values()
        images = (folder / "per_image.jsonl").read_text()
        found.append(([row | {"seconds": 0} for row in rows], images))
        assert not list(folder.glob("state.*"))
    assert found[0] == found[1]


TWO = {
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "2"}, "RANK is 2, but must be at least 0 and below WORLD_SIZE, which is 2"),
        ({"RANK": "-1"}, "RANK is -1"),
        ({"LOCAL_WORLD_SIZE": "1"}, "MASTER_ADDR is 127.0.0.1, but only 1 of 2 processes"),
        ({"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "::1"}, "MASTER_ADDR is ::1"),
    ],
)
def test_variables_with_which_processes_would_wait(monkeypatch, changes, message):
    monkeypatch.delenv(distributed.RUN_ID, raising=False)
    for name, value in (TWO | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), distributed.group(torch.device("cpu")):
        pass
