"""Batches from shards. What a process sees is a function of (seed, epoch, rank, worker).

Shards are dealt out to ranks and, within them, to workers; each has its own shuffle buffer. So,
unlike images that are read by number, other numbers of ranks or workers give other batches, and an
epoch is only about one pass: whose shards run out starts on them again, so that all ranks take
equally many steps. Tests are exact: each shard is read once, by one process.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classification import transforms
from classification.datasets import shards
from classification.datasets.shards import ShardSource
from classification.datasets.split import Source
from robust_backbones.core.errors import UserError

BUFFER = 2000  # encoded images per worker; about 200 MB of ImageNet's


@dataclass
class TrainingStream:
    """One epoch of a rank; the arguments are those of `loader.train_batches`."""

    source: ShardSource
    batch_size: int
    augmentation: str
    seed: int
    epoch: int
    start: int
    rank: int
    world: int

    def batches(self, worker: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What one of a rank's `workers` gives: every `workers`-th batch, the first ones in turn.

        Raises:
            UserError: fewer shards than processes, or a shard or image that cannot be read.
        """
        lane = (worker + self.start) % workers  # the loader asks worker 0 first, wherever it starts
        share = self.batch_size // self.world
        stream = self._samples(lane, workers)
        for batch in range(lane, len(self.source) // self.batch_size, workers):
            taken = [next(stream) for _ in range(share)]
            if batch < self.start:
                continue  # read, but not decoded
            labels: list[int] = []  # filled while the augmentation asks for images, one by one
            first = batch * self.batch_size + self.rank * share
            seeds = transforms.image_seeds(self.seed, self.epoch, np.arange(first, first + share))
            augment = transforms.AUGMENTATIONS[self.augmentation]
            x = augment(self._decoded(taken, labels), seeds, self.source.image_size)
            yield x, torch.tensor(labels)

    def _decoded(self, taken: list[dict], labels: list[int]) -> Iterator[Image.Image]:
        for sample in taken:
            image, label = shards.decode(sample, self.source.classes)
            labels.append(label)
            yield image

    def _samples(self, lane: int, lanes: int) -> Iterator[dict]:
        """Without end: the shards of one worker, again and again."""
        order = list(self.source.urls)
        random.Random(self._number(0)).shuffle(order)
        mine = order[self.rank :: self.world][lane::lanes]
        if not mine:
            raise UserError(
                f"{len(order)} shards are too few for {self.world} processes with {lanes} workers "
                "each; use fewer workers or make smaller shards."
            )

        # Each round through a buffer of its own: one without end would hold images many times.
        number = self._number(1 + self.rank * lanes + lane)
        for lap in itertools.count():
            empty = True
            for sample in shards.shuffled(shards.samples(mine), BUFFER, number + lap):
                empty = False
                yield sample
            if empty:
                raise UserError(f"there is no image in {', '.join(mine[:3])}.")

    def _number(self, which: int) -> int:
        """A seed that no image has."""
        place = np.array([transforms.NO_IMAGE + which], np.uint64)
        return int(transforms.image_seeds(self.seed, self.epoch, place)[0])


@dataclass
class TestingStream:
    """Each image once over all ranks; the arguments are those of `loader.test_batches`."""

    source: ShardSource
    batch_size: int
    rank: int
    world: int

    def batches(self, worker: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What one of a rank's `workers` gives.

        Raises:
            UserError: a shard or image that cannot be read.
        """
        mine = self.source.urls[self.rank :: self.world][worker::workers]
        pairs = []
        for sample in shards.samples(mine):
            image, label = shards.decode(sample, self.source.classes)
            # At once: decoded photographs of any size would fill the memory.
            pairs.append((transforms.centred([image], self.source.image_size), label))
            if len(pairs) == self.batch_size:
                yield _stacked(pairs)
                pairs = []
        if pairs:
            yield _stacked(pairs)

    def expected(self) -> int | None:
        """Images of this rank, where known."""
        if self.source.sizes is None:
            return self.source.count if self.world == 1 else None
        return sum(self.source.sizes[self.rank :: self.world])

    def check(self, seen: int) -> None:
        """Refuse another number of images than this rank should see, as far as that is known."""
        expected = self.expected()
        check_count(self.source, seen, seen if expected is None else expected)


def check_count(source: Source | ShardSource, seen: int, expected: int) -> None:
    """Refuse a test of another number of images than there are.

    Raises:
        UserError: so it is.
    """
    if seen != expected:
        raise UserError(
            f"{seen} images were read from the {source.split} shards of {source.name}, {expected} "
            "are expected: a shard is cut, changed or missing."
        )


def _stacked(pairs: list) -> tuple[Tensor, Tensor]:
    images, labels = zip(*pairs, strict=True)
    return torch.cat(images), torch.tensor(labels)
