"""Execute the runs of a study on a Ray cluster. This is the only module that imports Ray."""

import contextlib
import logging
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from classification.study.execute import FAILED, LOST, Attempt, execute
from classification.study.file import StudyRun
from robust_backbones.core.errors import UserError
from robust_backbones.core.workers import share_cores

# Tasks submitted to Ray per CPU core. This is enough to keep Ray busy, and fits into its memory.
QUEUED_PER_CORE = 4
POLL = 2  # seconds between two checks of the stop flag
# Errors of the cluster, not of the run. If the local raylet is lost, this process must reconnect
# before it can use the cluster.
_DISCONNECTED = (exceptions.LocalRayletDiedError, exceptions.RpcError, exceptions.RaySystemError)
_LOST = (
    *_DISCONNECTED,
    exceptions.NodeDiedError,
    exceptions.RayActorError,
    exceptions.ObjectLostError,
    exceptions.WorkerCrashedError,
)


class RayExecutor:
    """Executor that starts runs as Ray tasks. Ray chooses nodes and restarts tasks of lost nodes.

    If Ray gives up because the cluster or a part of it is lost, the runs end as `LOST`. The next
    start reconnects.

    Every node needs this package, and either the study's folder at the same path (shared storage)
    or an `output` in object storage.

    Args:
        address: address of a cluster; `"auto"` for the cluster of this machine; None to start a
            cluster on this machine.

    Raises:
        UserError: the cluster does not answer.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._running: dict = {}  # maps a Ray task to its run
        self._ended: list[tuple[StudyRun, Attempt]] = []  # lost runs for the next call of `wait`
        self._nodes: dict[tuple, str] = {}  # maps `_inputs` to the node with the cached features
        self._connect()

    def _connect(self) -> None:
        _check_reachable(self._address)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            ray.init(
                address=self._address,
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if self._address is None else None,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--address {self._address}: no Ray cluster responds ({error})."
            ) from None
        self._stop_flag: Any = ray.remote(_StopFlag).options(num_cpus=0, max_restarts=-1).remote()
        self._execute = ray.remote(_execute_on_node)
        cores = int(ray.cluster_resources().get("CPU", 1))
        self._limit = max(16, QUEUED_PER_CORE * cores)
        self._connected = True

    def has_room(self, run: StudyRun) -> bool:
        return not self._ended and len(self._running) < self._limit

    def places(self, run: StudyRun) -> int:
        total = ray.cluster_resources()
        fit = total.get("CPU", 1) / run.cpus if run.cpus else math.inf
        if run.gpus and (most := self.most_gpus()):
            fit = min(fit, total["GPU"] / min(run.gpus, most))
        return max(1, int(min(fit, self._limit)))

    def most_gpus(self) -> int:
        return int(max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]))

    def start(self, run: StudyRun) -> None:
        try:
            if not self._connected:
                self._connect()
            self._submit(run)
        except (*_LOST, UserError) as error:
            self._ended.append((run, _lost(error)))
            self._disconnect(error)

    def _submit(self, run: StudyRun) -> None:
        gpus = min(run.gpus, self.most_gpus())  # in a cluster without GPUs, runs use the CPU
        options: dict[str, Any] = {"num_cpus": run.cpus, "num_gpus": gpus, "max_retries": 5}
        if node := self._nodes.get(_inputs(run)):
            # Ray chooses another node if this node is full or lost.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                node, soft=True, _spill_on_unavailable=True
            )
        lines = run.lines(math.ceil(gpus))
        task = self._execute.options(**options).remote(run, lines, os.getcwd(), self._stop_flag)
        self._running[task] = run

    def wait(self, seconds: float) -> list[tuple[StudyRun, Attempt]]:
        if self._ended:
            lost, self._ended = self._ended, []
            return lost
        tasks = list(self._running)
        if not tasks:
            time.sleep(seconds)
            return []
        try:
            ended, _ = ray.wait(tasks, num_returns=1, timeout=seconds)
            if ended:  # also collect all other tasks that have ended
                ended, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        except _LOST as error:
            self._disconnect(error)
            return self.wait(0)
        found = []
        for task in ended:
            if task in self._running:  # false after `_disconnect`, which ends all runs
                run = self._running.pop(task)
                found.append((run, self._attempt(run, task)))
        return found

    def _disconnect(self, error: Exception) -> None:
        """End the session if this process lost its cluster. All running runs are then lost."""
        if self._connected and isinstance(error, _DISCONNECTED):
            self._connected = False
            self._ended += [(run, _lost(error)) for run in self._running.values()]
            self._running.clear()
            ray.shutdown()

    def _attempt(self, run: StudyRun, task: Any) -> Attempt:
        try:
            attempt, node = ray.get(task)
        except _LOST as error:
            self._disconnect(error)
            return _lost(error)
        except Exception as error:  # Ray gave up on the task, or our code failed on the node
            return Attempt(FAILED, 1, _words(error))
        self._nodes[_inputs(run)] = node
        return attempt

    def stop(self) -> None:
        if self._connected:
            with contextlib.suppress(*_LOST):  # lost runs end without the flag
                ray.get(self._stop_flag.set.remote())

    def close(self) -> None:
        ray.shutdown()


def _lost(error: Exception) -> Attempt:
    return Attempt(LOST, 1, _words(error))


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def _check_reachable(address: str | None) -> None:
    """Check that the cluster answers. Ray itself reports a missing cluster only after minutes.

    Raises:
        UserError: nothing is listening at HOST:PORT.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdecimal():  # skip "auto" and ray://
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster responds ({error}).") from None


class _StopFlag:
    """Ray actor that stores whether the study should stop."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


def _execute_on_node(
    run: StudyRun, lines: list[list[str]], folder: str, stop_flag: Any
) -> tuple[Attempt, str]:
    """Execute a run on a Ray node. Return the attempt and the ID of the node."""
    requested, next_look = False, time.monotonic() + POLL

    def stop_requested() -> bool:
        nonlocal requested, next_look
        if not requested and time.monotonic() > next_look:
            requested, next_look = ray.get(stop_flag.is_set.remote()), time.monotonic() + POLL
        return requested

    gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
    context = ray.get_runtime_context()
    own = context.get_node_id()
    node = next((each["Resources"] for each in ray.nodes() if each["NodeID"] == own), {})
    cores = _cores(run, context.get_assigned_resources(), node)
    environment = share_cores(cores, len(gpus))
    # Also if there are no GPUs: later Ray versions do not set it then.
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return execute(run, lines, environment, folder, stop_requested), own


def _cores(run: StudyRun, assigned: dict[str, float], node: dict[str, float]) -> float:
    """Return the number of CPU cores for a run.

    It is the `cpus` of the run. A run on GPUs gets at least its share of the node's cores: by
    default, `cpus` is 1, which is too few cores to load images for a GPU.

    Args:
        run: a run.
        assigned, node: resources of the run's task and of its node, as Ray counts them.
    """
    return max(run.cpus, node.get("CPU", 0) * assigned.get("GPU", 0) / node.get("GPU", 1))


def _inputs(run: StudyRun) -> tuple[str, ...]:
    """Return a key for the features of a run. Runs with equal keys can share cached features."""
    return tuple(str(run.options.get(key)) for key in ("weights", "dataset", "downscale"))
