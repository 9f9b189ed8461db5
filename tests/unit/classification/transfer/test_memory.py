"""Memory plans of the probe, for devices that are not here."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from classification.transfer import fixed_feature, memory, probe
from classification.transfer.memory import Size, make_plan, solver_device
from classification.transfer.rows import Rows
from robust_backbones.core.errors import UserError

IMAGENET = Size(1_281_167, 2048, 1000, 45)
PLANS = {  # device, free gigabytes, task -> place of the features
    "H100, 80 GB": ("cuda", 78, IMAGENET, "centered"),
    "A30, 24 GB": ("cuda", 23, IMAGENET, "device"),
    "V100, 16 GB": ("cuda", 15, IMAGENET, "mapped"),
    "CPU, 24 GB": ("cpu", 20, IMAGENET, "mapped"),
    "CPU, 64 GB": ("cpu", 60, IMAGENET, "centered"),
    "Food-101 on 8 GB": ("cpu", 6, Size(75_750, 2048, 101, 45), "centered"),
    "Pets on 4 GB": ("cpu", 2, Size(3_680, 2048, 37, 45), "centered"),
}


@pytest.mark.parametrize("name", PLANS)
def test_features_are_where_they_fit(name, monkeypatch):
    kind, free, size, store = PLANS[name]
    monkeypatch.setattr(memory, "free_bytes", lambda device: free * 10**9)
    plan = make_plan(size, torch.device(kind))
    assert plan.store == store and plan.needs <= plan.free == free * 10**9
    assert plan.slice_size == 2**20 if kind == "cpu" else plan.slice_size > 2**20
    assert f"of {free}.0 GB free" in str(plan)


@pytest.mark.parametrize(
    "device, fix",
    [("cuda", "Use --device cpu or a single"), ("cpu", "Use a machine with more memory or")],
)
def test_a_probe_that_fits_nowhere_names_the_fix(device, fix, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * 10**9)
    with pytest.raises(UserError) as error:
        make_plan(IMAGENET, torch.device(device))
    text = str(error.value)
    assert "1,281,167 images x 2,048 features" in text and "2.0 GB are free" in text and fix in text
    with pytest.raises(UserError) as error:
        make_plan(Size(10**6, 2048, 21_841, 1), torch.device(device))
    assert "--penalty" not in str(error.value)


CAPABILITIES = {  # GPU: compute capability, device of the solver
    "P100": ((6, 0), "cuda"),
    "GTX 1080": ((6, 1), "cpu"),
    "V100": ((7, 0), "cuda"),
    "T4": ((7, 5), "cpu"),
    "A100": ((8, 0), "cuda"),
    "RTX 3090": ((8, 6), "cpu"),
    "L4": ((8, 9), "cpu"),
    "H100": ((9, 0), "cuda"),
    "B200": ((10, 0), "cuda"),
    "B300": ((10, 3), "cpu"),
    "RTX 5090": ((12, 0), "cpu"),
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_gpus_with_slow_float64_leave_the_probe_to_the_cpu(name, monkeypatch):
    capability, expected = CAPABILITIES[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert solver_device(torch.device("cuda")).type == expected
    assert solver_device(torch.device("cpu")).type == "cpu"


def test_another_device_and_a_large_plan_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20 * 10**9)
    task = SimpleNamespace(
        settings=SimpleNamespace(chooses=True),
        device=torch.device("cuda"),
        train=SimpleNamespace(classes=1000),
    )
    fixed_feature.PROBES["logistic"](task, IMAGENET.images, IMAGENET.features)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "the probe runs on the CPU, because NVIDIA L4 is slow in float64"
    assert second.startswith(f"probe: {IMAGENET}: features in memory-mapped files, about ")


GROUPS = {  # files below the root -> free gigabytes
    "no group": ({}, 8),
    "version 2": (
        {
            "proc/self/cgroup": "0::/slurm/job_7\n",
            "sys/fs/cgroup/slurm/job_7/memory.max": "max\n",
            "sys/fs/cgroup/slurm/job_7/memory.current": "1000000000\n",
            "sys/fs/cgroup/slurm/memory.max": "4000000000\n",
            "sys/fs/cgroup/slurm/memory.current": "3000000000\n",
            "sys/fs/cgroup/slurm/memory.stat": "anon 5\nactive_file 0\ninactive_file 1000000000\n",
        },
        2,
    ),
    "version 1, in a container": (
        {
            "proc/self/cgroup": "5:cpu:/job\n4:memory:/job\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\n",
        },
        3,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_limits_of_a_job_are_limits_of_the_memory(name, tmp_path):
    files, expected = GROUPS[name]
    files = {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 7812500 kB\n"} | files
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert round(memory._free_host_bytes(tmp_path) / 1e9, 3) == expected


def test_rows_in_several_pieces_are_the_rows_of_the_matrix():
    x, indices = torch.randn(10, 3), torch.tensor([0, 3, 4, 8, 9])
    rows = Rows(x.split(4))
    assert len(rows) == 10 and rows.width == 3
    for first, last in ((0, 4), (1, 3), (2, 10), (5, 99), (4, 8)):
        assert torch.equal(rows.part(first, last), x[first:last])
    chosen = rows.subset(indices).subset(torch.tensor([1, 2, 4]))
    assert torch.equal(torch.cat(list(chosen.parts(2))), x[[3, 4, 9]])


@pytest.mark.parametrize("store", memory.STORES)
def test_probes_are_the_same_wherever_the_features_are(store):
    """The subset is in three pieces, and slices have fewer images than it."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(700) % 3
    x = (torch.randn(700, 8, generator=g) + torch.randn(3, 8, generator=g)[y] + 5).relu()
    indices = torch.arange(700)[torch.rand(700, generator=g) < 0.8]
    expected = probe.fit(x[indices].double(), y[indices], 3, [0.01, 1, 100], tolerance=1e-10)
    plan = make_plan(Size(len(indices), 8, 3, 3), torch.device("cpu"))
    plan = replace(plan, store=store, slice_size=1)
    rows = Rows(x.split(256)).subset(indices)
    found = probe.fit(rows, y[indices], 3, [0.01, 1, 100], tolerance=1e-10, plan=plan)
    torch.testing.assert_close(found.objective, expected.objective, rtol=1e-8, atol=0)
    assert torch.equal(found.predict(rows), expected.predict(x[indices]))
