"""Batches for training and testing: the same ones whatever the number of processes.

For images that are read by number; for shards, see `streams`.

An epoch is a permutation, a function of (seed, epoch). Global batch g is its g-th piece, and each
rank takes its contiguous part of it. What happens to an image depends on (seed, epoch, place in the
permutation) and on nothing else.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from classification import transforms
from classification.datasets import streams
from classification.datasets.shards import ShardSource
from classification.datasets.split import Source
from robust_backbones.core.errors import UserError


def steps(source: Source | ShardSource, batch_size: int) -> int:
    """Global batches in an epoch; the incomplete last one is left out (BatchNorm needs company).

    Raises:
        UserError: the batch is larger than the data.
    """
    if batch_size > len(source):
        raise UserError(
            f"batch size {batch_size} exceeds the {len(source)} training images; give "
            f"a --batch-size of at most {len(source)}."
        )
    return len(source) // batch_size


def train_batches(
    source: Source | ShardSource,
    batch_size: int,
    *,
    augmentation: str,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch, as one rank sees it.

    Args:
        batch_size: images of all ranks together; a multiple of `world`.
        augmentation: a key of `transforms.AUGMENTATIONS`.
        seed, epoch: at least 0.
        start: first global batch to give; those before cost nothing (shards: are read).
        rank, world: this process and the number of processes.
        workers: processes that load; 0: this one.

    Returns:
        Of x `(batch_size / world, 3, H, W)` float32 in [0, 1] and y int64.

    Raises:
        UserError: the batch is larger than the data or cannot be divided; an unreadable image; a
            worker that died.
    """
    total = steps(source, batch_size)
    if batch_size % world:
        raise UserError(
            f"batch size {batch_size} cannot be divided among {world} processes; choose a multiple."
        )
    if augmentation not in transforms.AUGMENTATIONS:
        known = ", ".join(transforms.AUGMENTATIONS)
        raise UserError(f"augmentation '{augmentation}' is unknown; one of: {known}.")
    if isinstance(source, ShardSource):
        job = streams.TrainingStream(
            source, batch_size, augmentation, seed, epoch, start, rank, world
        )
        return _streamed(job, workers)
    job = _Training(source, batch_size, augmentation, seed, epoch, rank, world)
    return _load(job, range(start, total), workers)


def test_batches(
    source: Source | ShardSource,
    batch_size: int,
    *,
    indices: Iterable[int] | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once over all ranks, in order: rank 0 has the first ones. Shards: in any order.

    Args:
        batch_size: images at once in each rank; the last batch may be smaller.
        indices: only these images (default: all).
        rank, world, workers: as in `train_batches`.

    Returns:
        Of x `(n, 3, H, W)` float32 in [0, 1] and y int64.

    Raises:
        UserError: an unreadable image; a worker that died; shards that do not hold as many images
            as expected; `indices` of shards.
    """
    if isinstance(source, ShardSource):
        if indices is not None:
            raise UserError(
                "single images of shards cannot be chosen; leave the others out with a limit."
            )
        return _counted(streams.TestingStream(source, batch_size, rank, world), workers)
    chosen = torch.as_tensor(list(range(len(source)) if indices is None else indices))
    share = chosen.long().tensor_split(world)[rank]
    job = _Testing(source, share, batch_size)
    return _load(job, range(-(-len(share) // batch_size)), workers)


class _Training:
    """Global batch number -> this rank's part of it."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        augmentation: str,
        seed: int,
        epoch: int,
        rank: int,
        world: int,
    ):
        self.source, self.batch_size, self.augmentation = source, batch_size, augmentation
        self.seed, self.epoch = seed, epoch
        self.share = batch_size // world
        self.offset = rank * self.share
        order = transforms.image_seeds(seed, epoch, np.array([transforms.NO_IMAGE], np.uint64))
        generator = torch.Generator().manual_seed(int(order[0]))
        self.order = torch.randperm(len(source), generator=generator)

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        first = batch * self.batch_size + self.offset
        chosen = self.order[first : first + self.share]
        seeds = transforms.image_seeds(self.seed, self.epoch, np.arange(first, first + self.share))
        augment = transforms.AUGMENTATIONS[self.augmentation]
        x = augment(self.source.read(chosen), seeds, self.source.image_size)
        return x, self.source.labels[chosen]


@dataclass
class _Testing:
    """Number of a batch of this rank -> the batch."""

    source: Source
    share: Tensor
    batch_size: int

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        chosen = self.share[batch * self.batch_size : (batch + 1) * self.batch_size]
        x = transforms.centred(self.source.read(chosen), self.source.image_size)
        return x, self.source.labels[chosen]


def _load(job: Any, batches: range, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of those numbers, in order."""
    if workers == 0:
        return (job[batch] for batch in batches)
    return _from_workers(_Guarded(job), workers, sampler=batches)


def _streamed(job: Any, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    if workers == 0:
        return job.batches(0, 1)
    return _from_workers(_GuardedStream(job), workers)


def _counted(job: streams.TestingStream, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    seen = 0
    for x, y in _streamed(job, workers):
        seen += len(y)
        yield x, y
    job.check(seen)


def _from_workers(
    dataset: torch.utils.data.Dataset, workers: int, sampler: Iterable | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches made by other processes, each of which uses one thread (torch sees to that)."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # It draws a seed when it starts, by default from the global generator, whose state must
        # not depend on how images are loaded.
        generator=torch.Generator(),
        worker_init_fn=_outlive_sigterm,
    )
    try:
        for batch in loader:
            if isinstance(batch, _Mistake):
                raise UserError(batch.message)
            yield tuple(batch)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a process that loads images died ({str(error).splitlines()[0]}); most often "
            "memory or /dev/shm is too small: use fewer workers or smaller batches."
        ) from None


def _outlive_sigterm(worker: int) -> None:
    """Schedulers and `torchrun` send SIGTERM to all processes; the one that trains decides.

    Without a parent, workers end by themselves.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass
class _Mistake:
    """A `UserError` on its way out of a worker, where it would grow a traceback."""

    message: str


class _Guarded(torch.utils.data.Dataset):
    """Number of a batch -> the batch or a `_Mistake`."""

    def __init__(self, job: Any):
        self.job = job

    def __getitem__(self, batch: int) -> Any:
        try:
            return self.job[batch]
        except UserError as error:
            return _Mistake(str(error))


class _GuardedStream(torch.utils.data.IterableDataset):
    """This worker's batches, and a `_Mistake` at the end if there was one."""

    def __init__(self, job: Any):
        self.job = job

    def __iter__(self) -> Iterator:
        info = torch.utils.data.get_worker_info()
        assert info is not None  # only workers iterate
        try:
            yield from self.job.batches(info.id, info.num_workers)
        except UserError as error:
            yield _Mistake(str(error))
