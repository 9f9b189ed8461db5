"""`train_net` in two processes on the CPU. Detectron2 starts several processes for GPUs only."""

from functools import partial

from robust_backbones.detection import launch, run_checks  # isort: skip  (before Detectron2)
import torch
import torch.distributed as dist
from detectron2.engine import defaults
from detectron2.utils import comm
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from robust_backbones.commands import train
from robust_backbones.detection.training.step import Step


def join(rank, work, world_size, gpus, machine_rank, url, args, timeout) -> None:
    """Join the group as Detectron2's `_distributed_worker` does, with gloo."""
    dist.init_process_group(
        "gloo", init_method=url, world_size=world_size, rank=rank, timeout=timeout
    )
    comm._LOCAL_PROCESS_GROUP = dist.new_group(list(range(world_size)))
    comm.synchronize()
    work(*args)


def main(words: list[str]) -> None:
    launch._distributed_worker = join
    launch.spawn = partial(start_processes, start_method="fork")
    run_checks.set_device = lambda *_: None
    defaults.create_ddp_model = lambda model, **options: DistributedDataParallel(model, **options)
    train.main(words)


def nan_in_process_1() -> None:
    """In the second iteration, the weights of process 1 are NaN."""
    plain = Step.run_step

    def run_step(self) -> None:
        if comm.get_rank() == 1 and self.iter == 1:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        plain(self)

    Step.run_step = run_step
