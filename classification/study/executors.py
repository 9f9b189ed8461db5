"""Where the runs of a study are made: processes of this machine, or a Ray cluster."""

import logging
import os
import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any

from classification.study import run as study_run
from classification.study.file import Run
from classification.study.run import FAILED, MISTAKE, Outcome
from robust_backbones.core.errors import UserError


class Local:
    """Processes of this machine, some at a time.

    GPUs are handed out by `CUDA_VISIBLE_DEVICES`, and the cores are shared out: each run has
    `OMP_NUM_THREADS` of its own, unless that is set already.

    Args:
        jobs: runs at a time; None for one per GPU, or one if there is none.
        gpus: of this machine; None to look.
    """

    def __init__(self, jobs: int | None = None, gpus: int | None = None) -> None:
        free = visible_gpus() if gpus is None else [str(i) for i in range(gpus)]
        self._free = dict.fromkeys(free, 1.0)
        self._jobs = jobs or max(1, len(free))
        self._threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        self._held: dict[Path, dict[str, float]] = {}
        self._done: queue.Queue = queue.Queue()
        self._stop = threading.Event()

    def room(self, run: Run) -> bool:
        return len(self._held) < self._jobs and self._devices(run) is not None

    def start(self, run: Run) -> None:
        devices = self._devices(run)
        assert devices is not None  # the queue has asked for `room`
        self._held[run.folder] = devices
        for name, part in devices.items():
            self._free[name] -= part
        environment = {}
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = self._threads
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        threading.Thread(target=self._work, args=(run, environment), daemon=True).start()

    def _work(self, run: Run, environment: dict) -> None:
        try:
            outcome = study_run.execute(run, environment, stopping=self._stop.is_set)
        except UserError as error:
            outcome = Outcome(FAILED, MISTAKE, str(error))
        except Exception as error:  # this run's failure, not the study's
            outcome = Outcome(FAILED, 1, f"{type(error).__name__}: {error}")
        self._done.put((run, outcome))

    def _devices(self, run: Run) -> dict[str, float] | None:
        """GPU -> the part of it that the run gets; None if there is no room now."""
        if not self._free or not run.gpus:  # runs that want a GPU take the CPU where none is
            return {}
        if run.gpus < 1:
            fits = [n for n, free in self._free.items() if free >= run.gpus - 1e-9]
            return {min(fits, key=self._free.__getitem__): run.gpus} if fits else None
        whole = [n for n, free in self._free.items() if free > 1 - 1e-9]
        needed = min(int(run.gpus), len(self._free))
        return dict.fromkeys(whole[:needed], 1.0) if len(whole) >= needed else None

    def ended(self, seconds: float) -> list[tuple[Run, Outcome]]:
        found = []
        try:
            found.append(self._done.get(timeout=seconds))
            while True:
                found.append(self._done.get_nowait())
        except queue.Empty:
            pass
        for run, _ in found:
            for name, part in self._held.pop(run.folder).items():
                self._free[name] += part
        return found

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        pass


def visible_gpus() -> list[str]:
    """Numbers (or names) of the GPUs that this process may use."""
    if (shown := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in shown.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class Ray:
    """Tasks of a Ray cluster; Ray finds the node, and starts again what a dying node took along.

    Every node needs this package, and the study's folder at the same place (shared storage), or
    an `output` in object storage.

    Args:
        address: of a cluster, `"auto"` for the one that this machine belongs to; None starts one
            on this machine.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """

    QUEUED = 4  # tasks per core that Ray is told of: enough to keep it busy, few enough to hold

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "--executor ray needs Ray: pip install 'robust-backbones[ray]'."
            ) from None
        _reach(address)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            ray.init(
                address=address,
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address is None else None,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"no Ray cluster answers at {address}: {error}") from None
        self._ray: Any = ray
        self._flag: Any = ray.remote(_Flag).options(num_cpus=0).remote()
        self._task = ray.remote(_task)
        self._going: dict = {}
        self._homes: dict[tuple, str] = {}
        self._most = max(16, self.QUEUED * int(ray.cluster_resources().get("CPU", 1)))

    def room(self, run: Run) -> bool:
        return len(self._going) < self._most

    def start(self, run: Run) -> None:
        options: dict[str, Any] = {
            "num_cpus": run.cpus,
            "num_gpus": self._gpus(run),
            "max_retries": 5,
        }
        if home := self._homes.get(_inputs(run)):
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            # Where its features lie already; elsewhere if that node is full or gone.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                home, soft=True, _spill_on_unavailable=True
            )
        task = self._task.options(**options).remote(run, os.getcwd(), self._flag)
        self._going[task] = run

    def _gpus(self, run: Run) -> float:
        """What it wants; none, if no node has any."""
        return run.gpus if self._ray.cluster_resources().get("GPU") else 0

    def ended(self, seconds: float) -> list[tuple[Run, Outcome]]:
        tasks = list(self._going)
        if not tasks:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(tasks, num_returns=1, timeout=seconds)
        if ready:  # and all others that have ended meanwhile
            ready, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)
        runs = [self._going.pop(task) for task in ready]
        return [(run, self._outcome(run, task)) for run, task in zip(runs, ready, strict=True)]

    def _outcome(self, run: Run, task: Any) -> Outcome:
        try:
            outcome, node = self._ray.get(task)
        except Exception as error:  # Ray gave up on it, or our code failed there
            lines = str(error).strip().splitlines() or [""]
            return Outcome(FAILED, 1, f"{type(error).__name__}: {lines[-1]}")
        self._homes[_inputs(run)] = node
        return outcome

    def stop(self) -> None:
        self._ray.get(self._flag.ask.remote())

    def close(self) -> None:
        self._ray.shutdown()


def _reach(address: str | None) -> None:
    """Ray itself waits for minutes before it says that nobody is there.

    Raises:
        UserError: nobody listens at HOST:PORT.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdecimal():  # auto, or ray://
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}.") from None


class _Flag:
    """An actor that knows whether the study is to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def asked(self) -> bool:
        return self._asked


def _task(run: Run, folder: str, flag: Any) -> tuple[Outcome, str]:
    """What a node does."""
    import ray

    asked, again = False, time.monotonic() + 2

    def stopping() -> bool:
        nonlocal asked, again
        if not asked and time.monotonic() > again:
            asked, again = ray.get(flag.asked.remote()), time.monotonic() + 2
        return asked

    environment = {"OMP_NUM_THREADS": str(max(1, int(run.cpus)))}
    outcome = study_run.execute(run, environment, folder, stopping)
    return outcome, ray.get_runtime_context().get_node_id()


def _inputs(run: Run) -> tuple:
    """Runs that share these read the same images through the same network."""
    return tuple(str(run.options.get(key)) for key in ("weights", "dataset", "downscale"))
