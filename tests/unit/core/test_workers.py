"""The default number of loading processes follows the device, the cores and the processes."""

import os

import pytest

from robust_backbones.core.errors import UserError
from robust_backbones.core.workers import CORES, default_workers, share_cores


@pytest.mark.parametrize(
    "device, cores, processes, workers",
    [
        ("cpu", 64, 1, 0),
        ("cuda", 16, 1, 16),
        ("cuda", 16, 8, 2),
        ("cuda", 2, 4, 1),
        ("cuda", 200, 8, 16),
        ("mps", 8, 1, 8),
    ],
)
def test_the_default_divides_the_cores(monkeypatch, device, cores, processes, workers):
    monkeypatch.delenv(CORES, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    assert default_workers(device, processes) == workers


@pytest.mark.parametrize(
    "share, processes, threads, workers", [(16, 4, 4, 4), (3.5, 1, 3, 3), (0.2, 8, 1, 1)]
)
def test_a_run_of_a_study_uses_its_share(monkeypatch, share, processes, threads, workers):
    environment = share_cores(share, processes)
    assert environment["OMP_NUM_THREADS"] == str(threads)
    monkeypatch.setenv(CORES, environment[CORES])
    assert default_workers("cuda", processes) == workers


@pytest.mark.parametrize("given", ["0", "many", "-1"])
def test_an_invalid_share_is_refused(monkeypatch, given):
    monkeypatch.setenv(CORES, given)
    with pytest.raises(UserError, match=f"{CORES} is '{given}'. Give a whole number of at least 1"):
        default_workers("cuda")
