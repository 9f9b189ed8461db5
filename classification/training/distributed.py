"""Train in several processes that `torchrun` started. A single process needs no setup."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from robust_backbones.core.addresses import is_own_address
from robust_backbones.core.errors import UserError
from robust_backbones.process_groups import TIMEOUT, failing_together

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)

VARIABLES = ("LOCAL_RANK", "RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
RUN_ID = "TORCHELASTIC_RUN_ID"  # set only by torchrun


@contextlib.contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, until the block ends or one of them fails.

    See `process_groups.failing_together` for failures.

    Args:
        device: device of a single process. Several processes use only its type.

    Yields:
        Device of this process. With several processes, this is the GPU of the local rank, or the
        CPU.

    Raises:
        UserError: this machine has more processes than GPUs, or the variables of `torchrun` are
            missing or contradict each other.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    _check_variables(os.environ)
    if RUN_ID in os.environ:
        # torchrun was killed: end at once, because a study may start the run again, and the new
        # processes need the GPUs. SIGTERM would not end processes that wait for each other.
        torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU, because the machine has "
                f"{torch.cuda.device_count()}. Lower --nproc-per-node of torchrun."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        with failing_together():
            yield device
    finally:
        dist.destroy_process_group()


def _check_variables(given: Mapping[str, str]) -> None:
    """Check the variables of a process group, in which the processes could wait for hours.

    Raises:
        UserError: a variable is missing, the rank is out of range, or other machines cannot
            connect.
    """
    size = given["WORLD_SIZE"]
    if missing := [name for name in VARIABLES if name not in given]:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set. Start several processes "
            "with torchrun, or unset WORLD_SIZE."
        )
    if not 0 <= int(given["RANK"]) < int(size):
        raise UserError(
            f"RANK is {given['RANK']}, but must be at least 0 and below WORLD_SIZE, which is "
            f"{size}. Start several processes with torchrun."
        )
    host, here = given["MASTER_ADDR"], given.get("LOCAL_WORLD_SIZE", size)
    # The machines have met already if torchrun started the processes.
    if here != size and is_own_address(host) and RUN_ID not in given:
        raise UserError(
            f"MASTER_ADDR is {host}, but only {here} of {size} processes are on this machine. On "
            "every machine, set it to the address of the first machine."
        )


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(numbers: list[float], device: torch.device) -> list[float]:
    """Sum each number over all processes, in float64. All processes must call this function."""
    if world() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def collected(items: list[T]) -> list[T]:
    """Concatenate the lists of all processes, in the order of ranks.

    All processes must call this function.
    """
    if world() == 1:
        return items
    pieces: list[Any] = [None] * world()
    dist.all_gather_object(pieces, items)
    return [item for piece in pieces for item in piece]


def average_buffers(model: nn.Module) -> None:
    """Average the running BatchNorm statistics over all processes."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if world() == 1 or not buffers:
        return
    flat = torch.cat([b.flatten() for b in buffers])
    dist.all_reduce(flat)
    pieces = (flat / world()).split([b.numel() for b in buffers])
    for buffer, piece in zip(buffers, pieces, strict=True):
        buffer.copy_(piece.view_as(buffer))


def await_failure() -> NoReturn:
    """Wait until this process is ended, because another one has failed; see `group`."""
    dist.barrier()
    raise AssertionError("no other process has failed")


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in process 0, and return its result in every process.

    If `make` fails, `process_groups.failing_together` ends the other processes.
    """
    if world() == 1:
        return make()
    shared: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(shared)
    return shared[0]


class _SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes. Unlike nn.SyncBatchNorm, it also runs on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(x)
        dims, n = (0, 2, 3), x.numel() / x.shape[1]
        x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        sums = torch.cat([x32.sum(dims), x32.new_full((1,), n)])
        sums = all_reduce(sums)
        n = sums[-1]
        mean = sums[:-1] / n
        centered = x32 - mean.view(1, -1, 1, 1)
        variance = all_reduce(centered.square().sum(dims)) / n
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * n / (n - 1)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        scale = (self.weight * (variance + self.eps).rsqrt()).view(1, -1, 1, 1)
        return (centered * scale + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def sync_batchnorm(model: Module, device: torch.device) -> Module:
    """Make every BatchNorm2d use the images of all processes. Tensor names do not change."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncBatchNorm  # the module keeps its tensors and options
    return model
