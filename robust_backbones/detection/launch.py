"""Start the processes of a training, one per GPU."""

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.launch import _distributed_worker
from torch.multiprocessing import ProcessExitedException, spawn

from robust_backbones.core.errors import user_errors
from robust_backbones.core.signals import EXIT_RESUMABLE, Stopped
from robust_backbones.detection import config
from robust_backbones.detection.training.run import Mode, run


@dataclass(frozen=True)
class Processes:
    """Number of the processes and their machines, as for `detectron2.engine.launch`.

    Attributes:
        gpus: number of GPUs on this machine. With 0 or 1, this process does the work.
        machines: number of machines.
        machine_rank: rank of this machine, in `[0, machines)`.
        url: address for the rendezvous of the processes.
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
) -> None:
    """Check the config, then train or evaluate in one process per GPU.

    End the program with the exit code of a failed process.

    Args:
        path: config file, or the name of a packaged one.
        overrides: `KEY VALUE` pairs.
        datasets: see `config.load_config`.

    Raises:
        UserError: the config or its input is invalid.
    """
    cfg = config.load_config(path, overrides, datasets=datasets)
    notice = config.set_device(cfg, processes.gpus, processes.machines)
    config.check_inputs(cfg, train=not mode.eval_only, resume=mode.resume)
    if notice:
        print(notice, file=sys.stderr)
    cfg.freeze()
    if processes.gpus * processes.machines <= 1:
        _work(cfg, mode)
        return
    _forward_sigterm()
    try:
        spawn(_worker, nprocs=processes.gpus, args=(processes, cfg, mode))
    except ProcessExitedException as error:
        sys.exit(error.exit_code)


def _worker(local_rank: int, processes: Processes, cfg: CfgNode, mode: Mode) -> None:
    """Join the process group and work.

    `detectron2.engine.launch` would pass its own worker to the new process, which would import
    Detectron2 before `robust_backbones.detection` has prepared it.
    """
    world_size = processes.gpus * processes.machines
    place = (world_size, processes.gpus, processes.machine_rank, processes.url)
    _distributed_worker(local_rank, _work, *place, (cfg, mode))


def _work(cfg: CfgNode, mode: Mode) -> None:
    with user_errors():
        try:
            run(cfg, mode)
        except Stopped:
            sys.exit(EXIT_RESUMABLE)


def _forward_sigterm() -> None:
    """Forward SIGTERM to the processes of the GPUs. This process waits for them."""

    def forward(number: int, frame: Any) -> None:
        for process in multiprocessing.active_children():
            if process.pid:
                os.kill(process.pid, number)

    signal.signal(signal.SIGTERM, forward)
