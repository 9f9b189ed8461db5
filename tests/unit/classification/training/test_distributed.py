"""One process with a batch against two processes with half of it each, with gloo on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from classification.datasets.open import open_split
from classification.training import distributed
from tests.support import ROOT
from tests.support.networks import random_network

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(processes: int, *command, check=True):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    env = ONE_THREAD | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launcher, *map(str, command)],
        env=env,
        check=check,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Numbers of a single process, and of the first and the second of two processes."""
    folder, found = tmp_path_factory.mktemp("sums"), []
    for processes in (1, 2):
        torchrun(processes, ROOT / "tests/support/distributed_sums.py", folder / str(processes))
        files = [folder / f"{processes}.{rank}" for rank in range(processes)]
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


def test_numbers_and_errors_are_shared(sums):
    one, first, second = sums
    assert one["total"] == [1, 0] and first["total"] == second["total"] == [2, 1]
    assert first["shared"] == second["shared"] == [0, "first"]
    assert first["refused"] == second["refused"] == "refused by the first process"


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


def pretrain(folder, batch, *options):
    return [
        "-m",
        "classification.pretrain",
        "--arch",
        "resnet18",
        "--dataset",
        "digits",
        "--limit",
        32,
        "--test-limit",
        21,
        "--epochs",
        1,
        "--batch-size",
        batch,
        "--lr",
        0.01,
        "--eps",
        0,
        "--eval-steps",
        1,
        "--device",
        "cpu",
        "--sync-bn",
        "--output",
        folder,
        *options,
    ]


def test_the_command_under_torchrun(tmp_path):
    """Losses are equal, each of 21 test images counts once, and there is one result."""
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        torchrun(processes, *pretrain(folder, 16))
        result = json.loads((folder / "result.json").read_text())
        assert result["hardware"]["processes"] == processes
        found.append(result["metrics"])
    assert found[0]["train_loss"] == pytest.approx(found[1]["train_loss"], rel=1e-4)
    assert found[0]["clean_loss"] == pytest.approx(found[1]["clean_loss"], rel=0.02)
    assert found[1]["clean_top1"] * 21 / 100 == pytest.approx(round(found[1]["clean_top1"] * 0.21))


def test_a_batch_that_cannot_be_divided(tmp_path):
    done = torchrun(2, *pretrain(tmp_path, 15), check=False)
    assert done.returncode != 0
    assert "--batch-size 15 cannot be split into 2 equal parts" in done.stderr


def test_transfer_under_torchrun(tmp_path):
    """Each test image is predicted once, in order. A probe refuses a second process."""
    from tests.support.transfer_runs import FAST, TINY, table, write_network

    weights = write_network(tmp_path / "w.pt", "shufflenet_v2_x1_0")
    command = [
        "-m",
        "classification.transfer",
        *TINY,
        "--test-limit",
        "31",
        "--weights",
        weights,
        "--output",
        tmp_path / "run",
    ]
    torchrun(2, *command, "--mode", "full-network", "--lr", "0.01", *FAST)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["hardware"]["processes"] == 2 and result["metrics"]["images"] == 31
    images = table(tmp_path / "run" / "per_image.csv")[1:]
    labels = open_split("digits", "test", limit=31).labels.tolist()
    assert [int(row[1]) for row in images] == labels
    refused = torchrun(2, *command, check=False)
    assert "--probe logistic runs in one process. Start it without torchrun" in refused.stderr


def test_robustness_eval_under_torchrun(tmp_path):
    """Two processes share three batches, and find what one process finds."""
    torch.save(random_network("shufflenet_v2_x1_0", 10).state_dict(), tmp_path / "w.pt")
    words = ["--weights", tmp_path / "w.pt", "--dataset", "digits", "--images", "10"]
    words += ["--batch-size", "4", "--steps", "2", "--eps", "1", "--device", "cpu", "--output"]
    command, found = ["-m", "classification.robustness_eval", *words], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        torchrun(processes, *command, folder)
        result = json.loads((folder / "result.json").read_text())
        assert result["hardware"]["processes"] == processes
        rows = result["metrics"]["attacks"].values()
        images = (folder / "per_image.jsonl").read_text()
        found.append(([row | {"seconds": 0} for row in rows], images))
        assert not list(folder.glob("state.*"))
    assert found[0] == found[1]
