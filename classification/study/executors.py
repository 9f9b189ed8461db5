"""Executors, which start the runs of a study. The executor for Ray is in ray_executor.py."""

import os
import queue
import threading
from pathlib import Path
from typing import Protocol

from classification.study.execute import FAILED, USER_ERROR, Attempt, execute
from classification.study.file import StudyRun
from robust_backbones.core.errors import UserError


class Executor(Protocol):
    """Interface of an executor, which starts runs and collects their outcomes."""

    def has_room(self, run: StudyRun) -> bool:
        """Return whether the run can start now."""

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

    It assigns GPUs to runs with `CUDA_VISIBLE_DEVICES`. It divides the CPU cores among the runs
    with `OMP_NUM_THREADS`, unless that variable is already set.

    Args:
        jobs: maximum number of simultaneous runs (default: one per GPU, or 1 without GPUs).
        gpus: number of GPUs to use (default: all visible GPUs).
    """

    def __init__(self, jobs: int | None = None, gpus: int | None = None) -> None:
        devices = _visible_gpus() if gpus is None else [str(i) for i in range(gpus)]
        self._free = dict.fromkeys(devices, 1.0)
        self._jobs = jobs or max(1, len(devices))
        self._threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        self._assigned: dict[Path, dict[str, float]] = {}  # maps a run's folder to its GPUs
        self._ended: queue.Queue = queue.Queue()
        self._stop = threading.Event()

    def has_room(self, run: StudyRun) -> bool:
        return len(self._assigned) < self._jobs and self._find_gpus(run) is not None

    def start(self, run: StudyRun) -> None:
        shares = self._find_gpus(run)
        assert shares is not None  # guaranteed by an earlier call of has_room
        self._assigned[run.folder] = shares
        for gpu, share in shares.items():
            self._free[gpu] -= share
        environment = {}
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = self._threads
        if shares:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(shares)
        threading.Thread(target=self._execute, args=(run, environment), daemon=True).start()

    def _execute(self, run: StudyRun, environment: dict[str, str]) -> None:
        try:
            attempt = execute(run, environment, stop_requested=self._stop.is_set)
        except UserError as error:
            attempt = Attempt(FAILED, USER_ERROR, str(error))
        except Exception as error:  # an exception fails this run only, not the study
            attempt = Attempt(FAILED, 1, f"{type(error).__name__}: {error}")
        self._ended.put((run, attempt))

    def _find_gpus(self, run: StudyRun) -> dict[str, float] | None:
        """Return the GPUs for a run and its fraction of each GPU, or None if too few are free."""
        if not self._free or not run.gpus:  # without GPUs in the machine, runs use the CPU
            return {}
        tolerance = 1e-9  # rounding error of sums of fractions such as 0.1
        if run.gpus < 1:
            fitting = [gpu for gpu, free in self._free.items() if free >= run.gpus - tolerance]
            return {min(fitting, key=self._free.__getitem__): run.gpus} if fitting else None
        idle = [gpu for gpu, free in self._free.items() if free > 1 - tolerance]
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


def _visible_gpus() -> list[str]:
    """Return the indices or UUIDs of the GPUs that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip()]
    import torch  # imported here, because the import takes seconds and CPU runs do not need torch

    return [str(i) for i in range(torch.cuda.device_count())]
