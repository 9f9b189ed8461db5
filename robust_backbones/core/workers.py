"""Number of CPU cores of a run, and number of its processes that load images."""

import os

from robust_backbones.core.errors import UserError

MOST_WORKERS = 16  # a GPU that trains ResNet-50 does not need more (benchmarks/GPU.md)
CORES = "ROBUST_BACKBONES_CORES"  # environment variable, which a study sets for each of its runs


def cores() -> int:
    """Return the number of CPU cores for this process and the processes that it starts.

    Raises:
        UserError: the environment variable `CORES` is not a number of cores.
    """
    if given := os.environ.get(CORES):
        if not given.isdecimal() or not int(given):
            raise UserError(f"{CORES} is '{given}'. Give a whole number of at least 1.")
        return int(given)
    usable = getattr(os, "sched_getaffinity", None)  # only on Linux
    return len(usable(0)) if usable else os.cpu_count() or 1


def share_cores(share: float, processes: int) -> dict[str, str]:
    """Return environment variables that limit a run to some of the CPU cores.

    Args:
        share: number of cores for the run; fractions are dropped, but one core remains.
        processes: number of processes of the run that compute. Each gets an equal number of
            threads.
    """
    own = max(1, int(share))
    return {CORES: str(own), "OMP_NUM_THREADS": str(max(1, own // max(1, processes)))}


def default_workers(device: str, processes: int = 1) -> int:
    """Return the default number of loading processes per training process.

    On a CPU, it is 0, because training needs all cores. On another device, it is the number of CPU
    cores of the run, divided by the number of training processes.

    Args:
        device: type of the device of the network, such as "cuda".
        processes: number of training processes on this machine.
    """
    return 0 if device == "cpu" else min(max(cores() // processes, 1), MOST_WORKERS)
