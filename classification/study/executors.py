"""Executors, which start the runs of a study. The executor for Ray is in ray_executor.py."""

import os
import queue
import threading
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from classification.study.execute import FAILED, Attempt, execute
from classification.study.file import StudyRun
from robust_backbones.core import workers
from robust_backbones.core.errors import EXIT_USER_ERROR, UserError

TOLERANCE = 1e-9  # rounding error of sums of fractions of a GPU, such as 0.1


class Executor(Protocol):
    """Interface of an executor, which starts runs and collects their outcomes."""

    def has_room(self, run: StudyRun) -> bool:
        """Return whether the run can start now."""

    def places(self, run: StudyRun) -> int:
        """Return how many runs with the resources of this one fit at the same time, at least 1."""

    def most_gpus(self) -> int:
        """Return the largest number of GPUs that a run can get."""

    def start(self, run: StudyRun) -> None:
        """Start the run without waiting for it."""

    def wait(self, seconds: float) -> list[tuple[StudyRun, Attempt]]:
        """Return the runs that have ended since the last call. Wait up to `seconds` for a run."""

    def stop(self) -> None:
        """Ask all runs to save their state and exit. `wait` still returns them."""

    def close(self) -> None:
        """Release all resources."""


class Local:
    """Executor that starts runs as processes on this machine.

    It assigns GPUs to runs with `CUDA_VISIBLE_DEVICES`, which is empty for runs on the CPU. It
    divides the CPU cores among the runs with `workers.share_cores`. `OMP_NUM_THREADS` keeps its
    value if it is set.

    Args:
        jobs: maximum number of simultaneous runs (default: as many as fit on the GPUs, and one run
            on the CPU for each GPU, but at least 1).
        gpus: GPUs to use, as `CUDA_VISIBLE_DEVICES` names them. Without GPUs, all runs use the CPU.
    """

    def __init__(self, jobs: int | None = None, gpus: Sequence[str] = ()) -> None:
        self._free = dict.fromkeys(gpus, 1.0)
        self._jobs = jobs
        self._assigned: dict[Path, dict[str, float]] = {}  # maps a run's folder to its GPUs
        self._ended: queue.Queue = queue.Queue()
        self._stop = threading.Event()

    def has_room(self, run: StudyRun) -> bool:
        shares = self._find_gpus(run)
        if shares is None or len(self._assigned) == self._jobs:
            return False
        on_cpu = sum(not assigned for assigned in self._assigned.values())
        return bool(shares) or on_cpu < self.places(run)

    def places(self, run: StudyRun) -> int:
        if not self._free or not run.gpus:
            return self._jobs or max(1, len(self._free))
        per_gpu = int(1 / run.gpus + TOLERANCE)  # 0 for several GPUs per run
        fit = per_gpu * len(self._free) or max(1, len(self._free) // int(run.gpus))
        return min(fit, self._jobs or fit)

    def most_gpus(self) -> int:
        return len(self._free)

    def start(self, run: StudyRun) -> None:
        shares = self._find_gpus(run)
        assert shares is not None  # guaranteed by an earlier call of has_room
        self._assigned[run.folder] = shares
        for gpu, share in shares.items():
            self._free[gpu] -= share
        environment = workers.share_cores(workers.cores() / self.places(run), len(shares))
        environment |= {k: v for k, v in os.environ.items() if k == "OMP_NUM_THREADS"}
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(shares)
        words = run.lines(len(shares)), environment
        threading.Thread(target=self._execute, args=(run, *words), daemon=True).start()

    def _execute(self, run: StudyRun, lines: list[list[str]], environment: dict[str, str]) -> None:
        try:
            attempt = execute(run, lines, environment, stop_requested=self._stop.is_set)
        except UserError as error:
            attempt = Attempt(FAILED, EXIT_USER_ERROR, str(error))
        except Exception as error:  # an exception fails this run only, not the study
            attempt = Attempt(FAILED, 1, f"{type(error).__name__}: {error}")
        self._ended.put((run, attempt))

    def _find_gpus(self, run: StudyRun) -> dict[str, float] | None:
        """Return the GPUs for a run and its fraction of each GPU, or None if too few are free."""
        if not self._free or not run.gpus:
            return {}
        if run.gpus < 1:
            fitting = [gpu for gpu, free in self._free.items() if free >= run.gpus - TOLERANCE]
            return {min(fitting, key=self._free.__getitem__): run.gpus} if fitting else None
        idle = [gpu for gpu, free in self._free.items() if free > 1 - TOLERANCE]
        needed = min(int(run.gpus), len(self._free))
        return dict.fromkeys(idle[:needed], 1.0) if len(idle) >= needed else None

    def wait(self, seconds: float) -> list[tuple[StudyRun, Attempt]]:
        ended = []
        try:
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        for run, _ in ended:
            for gpu, share in self._assigned.pop(run.folder).items():
                self._free[gpu] += share
        return ended

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        pass


def visible_gpus() -> list[str]:
    """Return the indices or UUIDs of the GPUs that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = map(str.strip, visible.split(","))
        return list(takewhile(lambda name: name and not name.startswith("-"), names))
    import torch  # imported here, because the import takes seconds and CPU runs do not need torch

    return [str(i) for i in range(torch.cuda.device_count())]
