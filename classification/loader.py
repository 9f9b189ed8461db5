"""Batches for training and testing: the same ones whatever the number of processes.

An epoch is a permutation, a function of (seed, epoch). Global batch g is its g-th piece, and each
rank takes its contiguous part of it. What happens to an image depends on (seed, epoch, place in the
permutation) and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from classification import transforms
from classification.sources import Source
from robust_backbones.errors import UserError

ORDER = 2**63  # the place of no image: its seed makes the permutation


def steps(source: Source, batch_size: int) -> int:
    """Global batches in an epoch; the incomplete last one is left out (BatchNorm needs company).

    Raises:
        UserError: the batch is larger than the data.
    """
    if batch_size > len(source):
        raise UserError(f"batch size {batch_size} exceeds the {len(source)} training images.")
    return len(source) // batch_size


def train_batches(source: Source, batch_size: int, *, augmentation: str, seed: int, epoch: int,
                  start: int = 0, rank: int = 0, world: int = 1, workers: int = 0,
                  ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """One epoch, as one rank sees it.

    Args:
        batch_size: images of all ranks together; a multiple of `world`.
        augmentation: a key of `transforms.AUGMENTATIONS`.
        seed, epoch: at least 0.
        start: first global batch to give; those before cost nothing.
        rank, world: this process and the number of processes.
        workers: processes that load; 0: this one.

    Returns:
        Of x `(batch_size / world, 3, H, W)` float32 in [0, 1] and y int64.

    Raises:
        UserError: the batch is larger than the data or cannot be divided; an unreadable image.
    """
    total = steps(source, batch_size)
    if batch_size % world:
        raise UserError(
            f"batch size {batch_size} cannot be divided among {world} processes; choose a multiple."
        )
    job = _Training(source, batch_size, augmentation, seed, epoch, rank, world)
    return _load(job, range(start, total), workers)


def test_batches(source: Source, batch_size: int, *, indices: Iterable[int] | None = None,
                 rank: int = 0, world: int = 1, workers: int = 0,
                 ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Each image once over all ranks, in order: rank 0 has the first ones.

    Args:
        batch_size: images at once in each rank; the last batch may be smaller.
        indices: only these images (default: all).
        rank, world, workers: as in `train_batches`.

    Returns:
        Of x `(n, 3, H, W)` float32 in [0, 1] and y int64.

    Raises:
        UserError: an unreadable image.
    """
    chosen = torch.as_tensor(list(range(len(source)) if indices is None else indices))
    share = chosen.long().tensor_split(world)[rank]
    job = _Testing(source, share, batch_size)
    return _load(job, range(-(-len(share) // batch_size)), workers)


class _Training:
    """Global batch number -> this rank's part of it."""

    def __init__(self, source, batch_size, augmentation, seed, epoch, rank, world):
        self.source, self.batch_size, self.augmentation = source, batch_size, augmentation
        self.seed, self.epoch = seed, epoch
        self.share = batch_size // world
        self.offset = rank * self.share
        order = transforms.image_seeds(seed, epoch, np.array([ORDER], np.uint64))
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


def _load(job, batches: range, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        yield job[batch]
