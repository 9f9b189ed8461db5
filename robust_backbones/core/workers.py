"""Number of processes that load images."""

import os

MOST_WORKERS = 16  # a GPU that trains ResNet-50 does not need more (benchmarks/GPU.md)


def default_workers(device: str, processes: int = 1) -> int:
    """Return the default number of loading processes per training process.

    On a CPU, it is 0, because training needs all cores. On another device, it is the number of CPU
    cores that this process may use, divided by the number of training processes.

    Args:
        device: type of the device of the network, such as "cuda".
        processes: number of training processes on this machine.
    """
    if device == "cpu":
        return 0
    usable = getattr(os, "sched_getaffinity", None)  # only on Linux
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return min(max(cores // processes, 1), MOST_WORKERS)
