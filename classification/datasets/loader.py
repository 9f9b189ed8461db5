"""Training and test batches, optionally loaded by worker processes.

The batches of an `ImageSplit` do not depend on the number of ranks or workers. In each epoch,
(seed, epoch) determines a permutation of the images. Global batch g is the g-th part of the
permutation, and each rank gets a contiguous part of the batch. The augmentation of an image depends
only on (seed, epoch, position in the permutation). For shards, see `shards.ShardSplit`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from classification import transforms
from classification.datasets.split import ImageBatch, Split, TrainEpoch
from robust_backbones.core.errors import UserError, WorkerFailure

# Function from (index of a worker, number of workers) to the batches of the worker.
Batches = Callable[[int, int], Iterator[ImageBatch]]
# Pairs of images (n, 3, H, W), float32 in [0, 1], and labels (n,), int64.
Pairs = Generator[tuple[Tensor, Tensor], None, None]


def steps(split: Split, batch_size: int) -> int:
    """Return the number of global batches in an epoch.

    The incomplete last batch is dropped, because BatchNorm fails on a batch of one image.

    Raises:
        UserError: the batch is larger than the split.
    """
    check_batch_size(batch_size, len(split))
    return len(split) // batch_size


def check_batch_size(batch_size: int, images: int) -> None:
    """Check that a batch is not larger than the number of training images.

    Raises:
        UserError: the batch is larger.
    """
    if batch_size > images:
        raise UserError(
            f"--batch-size {batch_size}: there are only {images} training images. Choose at most "
            f"{images}."
        )


def train_batches(
    split: Split,
    batch_size: int,
    *,
    augmentation: str,
    seed: int,
    epoch: int,
    epochs: int = 1,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Pairs:
    """Return one rank's batches of one or more epochs.

    Worker processes start once. At the end of an epoch, they load the first batches of the next.

    Args:
        split: the training images.
        batch_size: images in a global batch, a multiple of `world`.
        augmentation: key of `transforms.AUGMENTATIONS`.
        seed, epoch: seed and index of the first epoch, integers, at least 0.
        epochs: number of epochs.
        start: index of the first global batch in the first epoch. Skipped batches take no time,
            except that shards must still be read.
        rank, world: index of this process and number of processes.
        workers: number of loading processes; 0 to load images in this process. There are at most
            as many as batches in an epoch.
        device: device of the batches. Colors are changed on this device.

    Returns:
        Generator of pairs of images `(batch_size / world, 3, H, W)`, float32 in [0, 1], and labels
        `(batch_size / world,)`, int64. Close the generator to stop its workers early.

    Raises:
        UserError: the batch size is too large or not a multiple of `world`; the augmentation is
            unknown; an image cannot be read; a worker died.
    """
    steps(split, batch_size)
    if batch_size % world:
        raise UserError(
            f"--batch-size {batch_size}: not a multiple of the {world} processes. Choose a "
            f"multiple of {world}."
        )
    if augmentation not in transforms.AUGMENTATIONS:
        known = ", ".join(transforms.AUGMENTATIONS)
        raise UserError(f"augmentation '{augmentation}' is unknown. Choose from {known}.")
    workers = min(workers, steps(split, batch_size))
    plans = [
        TrainEpoch(batch_size, augmentation, seed, index, start * (index == epoch), rank, world)
        for index in range(epoch, epoch + epochs)
    ]
    return iter(_Passes(partial(_train_stream, split, plans), workers, device))


def _train_stream(
    split: Split, plans: Sequence[TrainEpoch], worker: int, workers: int
) -> Iterator[ImageBatch]:
    """Yield one worker's batches of several epochs.

    The training process takes batches from all workers in turn, also from one epoch to the next.
    """
    first = 0  # index of the epoch's first batch in the stream
    for plan in plans:
        yield from split.train_batches(plan, (worker - first) % workers, workers)
        first += steps(split, plan.batch_size) - plan.start


class TestLoader:
    """One rank's test batches. All ranks together read each image once.

    Each iteration is a pass over all batches. Worker processes start in the first pass, and end
    with this object. The images of an `ImageSplit` come in order, and rank 0 gets the first images.
    The order of images in shards depends on the number of workers.

    Args:
        split: the test images.
        batch_size: images per batch and rank; the last batch may be smaller.
        rank, world, workers, device: as in `train_batches`.

    Attributes:
        split: the test images.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ):
        self.split, self._expected = split, split.expected_images(rank, world)
        if self._expected is not None:
            workers = min(workers, -(-self._expected // batch_size))
        self._passes = _Passes(
            partial(split.test_batches, batch_size, rank, world), workers, device
        )

    def __iter__(self) -> Pairs:
        """Yield images `(n, 3, H, W)`, float32 in [0, 1], and labels `(n,)`, int64.

        Raises:
            UserError: an image cannot be read; a worker died; the number of images in the shards
                is wrong.
        """
        seen = 0
        for x, y in self._passes:
            seen += len(y)
            yield x, y
        if self._expected is not None:
            check_count(self.split, seen, self._expected)


def load_batches(split: Split, batch_size: int, **options: Any) -> Pairs:
    """Load all images of a split once, as center crops for evaluation.

    Args:
        split: images, from `open_split`.
        batch_size: images per batch; the last batch may be smaller.
        options: further arguments of `TestLoader`, such as the number of reading processes
            (`workers`) and the device of the batches (`device`).

    Yields:
        Images `(N, 3, H, W)`, float32 RGB in [0, 1], and labels `(N,)`, int64.

    Raises:
        UserError: an image cannot be read.
    """
    return iter(TestLoader(split, batch_size, **options))


def check_count(split: Split, seen: int, expected: int) -> None:
    """Check that all test images were evaluated.

    Raises:
        UserError: fewer or more images than expected were evaluated.
    """
    if seen != expected:
        raise UserError(
            f"{split.name}: read {seen} images from the {split.split} shards instead of "
            f"{expected}. A shard is truncated, changed or missing: fetch it again."
        )


class _Passes:
    """An iterable of all batches in order, loaded by this process or by `workers` other processes.

    The other processes start in the first iteration, and end with this object.
    """

    def __init__(self, batches: Batches, workers: int, device: torch.device | str):
        self._device = torch.device(device)
        self._loader = DataLoader(
            _LoadedBatches(batches),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",  # other copies wait for the device
            # The loader draws a seed. A separate generator keeps the global generator's state
            # independent of the number of workers.
            generator=torch.Generator(),
            worker_init_fn=_ignore_sigterm,
        )

    def __iter__(self) -> Pairs:
        try:
            for batch in self._loader:
                if isinstance(batch, WorkerFailure):
                    raise UserError(batch)
                yield batch.finished(self._device)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise UserError(
                f"a worker that loads images died ({str(error).splitlines()[0]}). The usual cause "
                "is too little memory or too small a /dev/shm. Use fewer --workers or a smaller "
                "--batch-size."
            ) from None


def _ignore_sigterm(worker: int) -> None:
    """Ignore SIGTERM, which schedulers and `torchrun` send to all processes.

    The training process needs its workers until it has saved its state. The workers exit with the
    training process.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """Kill workers that are left when this process exits.

    `multiprocessing` would end them with SIGTERM, which they ignore, and wait for them forever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class _LoadedBatches(IterableDataset):
    """Batches of one worker, or of this process.

    If loading raises a `UserError`, a `WorkerFailure` comes last.
    """

    def __init__(self, batches: Batches):
        self.batches = batches

    def __iter__(self) -> Iterator[ImageBatch | WorkerFailure]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            yield from self.batches(worker, workers)
        except UserError as error:
            yield WorkerFailure(str(error))
