"""The default number of loading processes follows the device, the cores and the processes."""

import os

import pytest

from robust_backbones.core.workers import default_workers


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
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    assert default_workers(device, processes) == workers
