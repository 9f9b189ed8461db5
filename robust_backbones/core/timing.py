"""Measure time on a CPU or a GPU."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name")
CPU = torch.device("cpu")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Run `work` once and return the seconds that it took.

    GPU work is asynchronous. It is timed with CUDA events, which include idle gaps.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    began.record()
    work()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000


def take_turns(
    works: Mapping[Name, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[Name, list[float]]:
    """Seconds of each repeat. The works take turns, so that other load affects all of them.

    Args:
        works: functions to time, by name.
        repeats: number of timed rounds.
        device: device that runs the works.
        warm_up: number of rounds before the timed ones. Calls in them that take more than 20 s,
            such as compilation, are reported.
    """
    found: dict[Name, list[float]] = {name: [] for name in works}
    for turn in range(-warm_up, repeats):
        for name, work in works.items():
            took = seconds(work, device)
            if turn >= 0:
                found[name].append(took)
            elif took > 20:
                print(f"(first call of '{name}': {took:.0f} s)", flush=True)
    return found


def medians(
    works: Mapping[Name, Callable[[], object]], repeats: int, device: torch.device = CPU
) -> dict[Name, float]:
    """Median seconds of each work; see `take_turns`."""
    found = take_turns(works, repeats, device)
    return {name: statistics.median(values) for name, values in found.items()}
