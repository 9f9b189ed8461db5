"""Failures of one of several processes, while the others wait for it in a collective."""

import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from classification.training import distributed, launch, learner
from robust_backbones.core.errors import UserError, user_errors
from tests.support.small_models import learning


def refuse() -> None:
    raise UserError("refused by one process")


def bug() -> None:
    {}["missing"]


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "full", "log.txt")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def closed_pipe() -> None:
    """The reader of the output has ended, as `head` does."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
    print("line", flush=True)


def memory() -> None:
    def work() -> None:
        if distributed.rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        wait()

    launch.once(Path(sys.argv[-1]), {}, learning(), torch.device("cpu"), work, "")


def wait() -> None:
    dist.all_reduce(torch.ones(1))


def one(fail, rank: int) -> None:
    fail() if distributed.rank() == rank else wait()


CASES = {
    "an error of process 1": partial(one, refuse, 1),
    "an error of process 0": partial(one, refuse, 0),
    "an error of process 0 for all": partial(distributed.from_first, refuse),
    "a bug of process 0 for all": partial(distributed.from_first, bug),
    "the same error in all": refuse,
    "a full disk": partial(one, full_disk, 1),
    "a closed pipe": partial(one, closed_pipe, 0),
    "too little memory": memory,
    "a killed process": partial(one, killed, 1),
}


def main(words: list[str]) -> None:
    sys.argv = ["process_faults.py", *words]
    with user_errors(), distributed.group(torch.device("cpu")):
        CASES[words[0]]()


def nan_in_process_1() -> None:
    """From the second step on, the weights of process 1 are NaN."""
    plain, steps = learner.Learner.step, []

    def step(self, *args, **options):
        steps.append(0)
        if distributed.rank() == 1 and len(steps) > 1:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(float("nan"))
        return plain(self, *args, **options)

    learner.Learner.step = step
