"""Start a training or an evaluation, with one process per GPU."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

from detectron2.config import CfgNode
from detectron2.engine.launch import _distributed_worker, _find_free_port
from torch.multiprocessing import ProcessExitedException, spawn

from robust_backbones.core.errors import print_error, user_errors
from robust_backbones.core.signals import EXIT_RESUMABLE, Stopped
from robust_backbones.detection import config, run_checks
from robust_backbones.detection.training.learning_rate import choose_rate
from robust_backbones.detection.training.run import Mode, has_diverged, run
from robust_backbones.process_groups import TIMEOUT, failing_together


@dataclass(frozen=True)
class Processes:
    """Numbers of processes and machines of a run, as in `detectron2.engine.launch`.

    Attributes:
        gpus: number of GPUs to use on this machine. A run with at most one GPU in total starts no
            other process.
        machines: number of machines.
        machine_rank: rank of this machine, in `[0, machines)`.
        url: URL at which the processes meet; "auto": a free port of this machine.
    """

    gpus: int = 1
    machines: int = 1
    machine_rank: int = 0
    url: str = "auto"


def launch(
    path: str,
    overrides: list[str],
    datasets: dict[str, list[str]],
    mode: Mode,
    processes: Processes,
    candidates: Sequence[str] = (),
) -> None:
    """Check the config, then train or evaluate in one process per GPU.

    If a process fails, the program exits with the exit code of this process.

    Args:
        path: config file, or the name of a packaged config.
        overrides: flat list of `KEY VALUE` pairs.
        datasets: datasets that replace the datasets of the config; see `config.load_config`.
        mode: whether to train or evaluate, and whether to resume.
        processes: numbers of processes and machines.
        candidates: folders of runs that the learning rate is chosen from; see `choose_rate`. Empty
            to use the learning rate of the config.

    Raises:
        UserError: the config, a dataset, the weights or a candidate are invalid.
    """
    cfg = config.load_config(path, overrides, datasets=datasets)
    notice = run_checks.set_device(cfg, processes.gpus, processes.machines)
    run_checks.check_inputs(cfg, not mode.eval_only, mode.resume, overrides)
    notes = choose_rate(cfg, candidates, overrides[::2]) if candidates else []
    for note in [*filter(None, [notice]), *notes]:
        print(note, file=sys.stderr)
    cfg.freeze()
    if processes.gpus * processes.machines <= 1:
        _work(cfg, mode)
        return
    _forward_sigterm()
    try:
        run_in_group(partial(_work, cfg, mode), processes)
    except ProcessExitedException as error:
        if cfg.DATASETS.HELD_OUT and has_diverged(cfg.OUTPUT_DIR):
            return
        _exit_as(error)


def evaluate(work: Callable[[], None], gpus: int) -> None:
    """Run an evaluation that shares its images between processes, in one process per GPU.

    If a process fails, the program exits with the exit code of this process.

    Args:
        work: picklable function that evaluates.
        gpus: number of GPUs to use on this machine. At most one GPU starts no other process.

    Raises:
        UserError: this machine has fewer GPUs.
    """
    run_checks.check_gpus(gpus)
    if gpus <= 1:
        work()
        return
    _forward_sigterm()
    try:
        run_in_group(partial(_evaluate, work), Processes(gpus))
    except ProcessExitedException as error:
        _exit_as(error)


def _exit_as(error: ProcessExitedException) -> NoReturn:
    """Exit with the code of a failed process, which has printed its error unless it was killed."""
    if error.signal_name:
        print_error(
            f"error: process {error.error_index} was killed by {error.signal_name}. The machine "
            "may have too little memory. Start the command again, with --resume if it trains."
        )
    sys.exit(error.exit_code % 256)


def _evaluate(work: Callable[[], None]) -> None:
    with user_errors(), failing_together():
        work()


def run_in_group(work: Callable[[], None], processes: Processes) -> None:
    """Run a picklable function in all processes of this machine, as members of one process group.

    Raises:
        ProcessExitedException: a process failed. The others have been stopped.
    """
    if processes.url == "auto":
        processes = replace(processes, url=f"tcp://127.0.0.1:{_find_free_port()}")
    # The error of a process must come last, and not that `spawn` terminates the others.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    spawn(_worker, nprocs=processes.gpus, args=(processes, work))


def _worker(local_rank: int, processes: Processes, work: Callable[[], None]) -> None:
    """Join the process group, then run `work`.

    `detectron2.engine.launch` would pass its own worker function to the new process. That process
    would then import Detectron2 before `robust_backbones.detection` has prepared it.
    """
    world_size = processes.gpus * processes.machines
    place = (world_size, processes.gpus, processes.machine_rank, processes.url)
    _distributed_worker(local_rank, work, *place, (), TIMEOUT)


def _work(cfg: CfgNode, mode: Mode) -> None:
    with user_errors(), failing_together():
        try:
            run(cfg, mode)
        except Stopped:
            sys.exit(EXIT_RESUMABLE)


def _forward_sigterm() -> None:
    """Forward SIGTERM to the child processes. This process then waits until they have ended."""

    def forward(number: int, frame: Any) -> None:
        for process in multiprocessing.active_children():
            if process.pid:
                os.kill(process.pid, number)

    signal.signal(signal.SIGTERM, forward)
