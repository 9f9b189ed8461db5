"""Memory plan of the logistic probe: where it runs, where the features are, how much at once.

The features of large tasks exceed the memory of many devices: ImageNet's 1.28 million images with
2,048 features take 10.5 GB in float32, and 21 GB in float64. The solver reads them once per
iteration, so they can be outside the device at the cost of time. The result is the same.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from classification.transfer.lbfgs import MEMORY, patience
from robust_backbones.core.errors import UserError

# Bytes per float32 feature on the solver's device, by where the features are. The first that fits
# is used.
STORES = {
    "centered": 8,  # centered float64 copy on the device
    "device": 4,  # on the device, converted in slices at every use
    "mapped": 0,  # in memory-mapped files: slices are read and converted at every use
}
# Compute capabilities of the CUDA devices whose float64 speed is at least a third of their float32
# speed. Other devices reach 1/32 or 1/64. Solving in float32 first does not help: the float64
# iterations from there are more than the iterations of a float64 solution from the start.
FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
# Numbers in a slice. A CPU's cache limits it to 2^20. GPUs need large slices, because starting a
# kernel takes longer than computing a small one.
CPU_SLICE, GPU_SLICE = 2**20, 2**26
MOMENT_SLICE = 2**22  # smallest slice of the second moment, whose matrix products need many rows
STATE_BYTES = 2**31  # largest L-BFGS state; the remaining penalties form the next batch
ITERATIONS = 30  # most penalties need fewer iterations
SHRINK = (1, 4, 16)  # divisors of the slices and the state to try, in order
USABLE = 0.9  # share of the free memory to plan with; allocators lose the rest
LARGE = 2**31  # bytes; larger plans are printed


@dataclass(frozen=True)
class Size:
    """Size of a task: numbers of training images, features, classes and penalties."""

    images: int
    features: int
    classes: int
    penalties: int

    @property
    def width(self) -> int:
        """Number of unknowns per class, as in `logistic.Images`."""
        return min(self.images, self.features) + 1

    def __str__(self) -> str:
        return (
            f"{self.images:,} images x {self.features:,} features, {self.classes:,} classes, "
            f"{self.penalties} penalties"
        )


@dataclass(frozen=True)
class Plan:
    """Where the probe runs, and how much it computes at once.

    Attributes:
        device: device of the solver.
        store: where the features are, a key of `STORES`.
        slice_size: number of logits or features that are computed at once.
        state: largest L-BFGS state in bytes.
        needs: estimated peak memory on the device, without memory-mapped files, in bytes.
        free: free memory of the device, in bytes.
    """

    device: torch.device
    store: str
    slice_size: int
    state: int
    needs: int
    free: int

    def __str__(self) -> str:
        where = {
            "centered": f"in float64 on {self.device}",
            "device": f"in float32 on {self.device}",
            "mapped": "in memory-mapped files",
        }
        return (
            f"features {where[self.store]}, about {gigabytes(self.needs)} of "
            f"{gigabytes(self.free)} free memory on {self.device}"
        )


def gigabytes(count: int) -> str:
    """Format a number of bytes, in MB if it is small."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"


def solver_device(device: torch.device) -> torch.device:
    """Return the device of the solver: the CPU instead of a GPU with slow float64."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) not in FAST_FLOAT64:
        return torch.device("cpu")
    return device


def make_plan(size: Size, device: torch.device) -> Plan:
    """Plan a probe with the memory that is free now.

    Raises:
        UserError: the solver does not fit, wherever the features are.
    """
    free, needs = free_bytes(device), 0
    for store, each in STORES.items():
        if store == "device" and device.type == "cpu":
            continue  # mapped files are in the same memory
        for part in SHRINK:
            slice_size = CPU_SLICE if device.type == "cpu" else GPU_SLICE // part
            plan = Plan(device, store, slice_size, STATE_BYTES // part, 0, free)
            needs = _solver_bytes(size, plan) + each * size.images * size.width
            if needs <= USABLE * free:
                return replace(plan, needs=needs)
    fixes = ["a machine with more memory" if device.type == "cpu" else "--device cpu"]
    if size.penalties > 1:
        fixes.append("a single penalty (--penalty)")
    raise UserError(
        f"the probe needs about {gigabytes(int(needs / USABLE))} of memory on {device} ({size}), "
        f"but {gigabytes(free)} are free. Use {' or '.join(fixes)}."
    )


def _solver_bytes(size: Size, plan: Plan) -> int:
    """Estimate the peak memory of the solver without the features, in bytes."""
    unknowns, features = 8 * size.classes * size.width, size.images * size.width
    problem = state_bytes(unknowns)
    logits = size.images * size.classes * size.penalties
    at_once = min(max(1, plan.state // problem), size.penalties)
    # Penalties share preconditioners of two matrices each, unless iterations renew them.
    renewed = patience(size.width, size.images, size.classes) < ITERATIONS
    preconditioners = size.penalties // 2 + at_once if renewed else size.penalties // 8
    return (
        2 * size.penalties * unknowns  # solutions, and their weights
        + at_once * problem
        + (2 + preconditioners) * 8 * size.width**2
        # A slice exists as features in float32 and float64, as logits and as their squares.
        + 32 * min(plan.slice_size, max(features, logits))
        # The second moment needs a slice in float64, in float32 and weighted.
        + 16 * min(max(plan.slice_size, MOMENT_SLICE), features)
        + 32 * size.images  # labels, indices and weights
    )


def state_bytes(unknowns: int) -> int:
    """Return the bytes of a problem's L-BFGS state, from the bytes of its unknowns."""
    return (3 * MEMORY + 10) * unknowns


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that this process can still use, in bytes."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return _free_host_bytes(Path("/"))


def _free_host_bytes(root: Path) -> int:
    """Return the free host memory within the limits of the process's control groups.

    Batch systems and containers limit jobs by control groups. Cached files count as free.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _lines(root / "proc/meminfo"):
        name, value = line.split(":")
        if name == "MemAvailable":
            found = [1024 * int(value.split()[0])]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if controllers
            else ("memory.max", "memory.current")
        )
        folder = base / path.lstrip("/")
        for group in [folder, *folder.parents]:
            size, usage = "".join(_lines(group / limit)), "".join(_lines(group / used))
            if size.isdigit() and usage.isdigit():
                stat = dict(line.split() for line in _lines(group / "memory.stat"))
                names = ("inactive_file", "active_file")
                # Version 1 reports a group without its subgroups, and their sum as "total_".
                cached = sum(int(stat.get(f"total_{n}", stat.get(n, 0))) for n in names)
                found.append(int(size) - int(usage) + cached)
    return max(0, min(found))


def _lines(path: Path) -> list[str]:
    """Read the lines of a file of the kernel; return an empty list if there is no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
