"""Opened splits of datasets: their common interface, and splits with random access to images."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classification import colors, transforms
from classification.datasets.image_files import ImageFiles, read_fast
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding, decode
from robust_backbones.core.input_statistics import InputStatistics

# Seed for --limit and for the held-out part, so that every run selects the same images.
SUBSET_SEED = 2020


class ImageBatch(NamedTuple):
    """A batch of loaded images, as it is sent from one process to another.

    Attributes:
        pixels: images `(n, 3, H, W)`, uint8 in [0, 255] or float32 in [0, 1].
        labels: classes `(n,)`, int64.
        colors: random numbers for `colors.finish`, or None.
    """

    pixels: Tensor
    labels: Tensor
    colors: Tensor | None = None

    def finished(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Return the images, float32 in [0, 1], and the labels on a device."""
        x = colors.finish(self.pixels, self.colors, device)
        return x, self.labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class TrainEpoch:
    """One rank's part of a training epoch.

    Attributes:
        batch_size: images in a global batch, a multiple of `world`.
        augmentation: key of `transforms.AUGMENTATIONS`.
        seed, epoch: integers, at least 0.
        start: index of the first global batch to return.
        rank, world: index of this process and number of processes.
    """

    batch_size: int
    augmentation: str
    seed: int
    epoch: int
    start: int = 0
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Split(ABC):
    """One opened split of a dataset.

    Attributes:
        name: key of `specs.DATASETS`.
        split: `train`, `val` or `test`.
        classes: number of classes.
        image_size: height and width of the transformed images, pixels.
        statistics: input statistics of a network that is trained on the dataset.
        augmentation: the dataset's training augmentation, a key of `transforms.AUGMENTATIONS`.
        class_names: one name per class.
        decoding: settings of the image decoder.
        origin: description of how the split was selected, such as "test/" or "20 % of each class,
            seed 0"; empty for the dataset's own splits.
        random_access: whether images can be read by index, as in an `ImageSplit`.
    """

    name: str
    split: str
    classes: int
    image_size: int
    statistics: InputStatistics
    augmentation: str
    class_names: tuple[str, ...]
    decoding: Decoding = field(default=Decoding(), kw_only=True)
    random_access: ClassVar[bool]
    origin: str = field(default="", kw_only=True)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a SHA-256 (hex) that identifies the data in result files."""

    def describe(self) -> dict:
        """Return the name, size, fingerprint and origin of the split, for result files."""
        facts = {"name": self.name, "images": len(self), "fingerprint": self.fingerprint()}
        return facts | ({"split": self.origin} if self.origin else {})

    @abstractmethod
    def class_sizes(self) -> list[int] | None:
        """Return the number of images per class, or None if it is unknown."""

    @abstractmethod
    def sample(self, count: int, seed: int) -> Split:
        """Return a split with about `count` images for a quick evaluation.

        The result contains the same images in each call.
        """

    @abstractmethod
    def train_batches(self, epoch: TrainEpoch, worker: int, workers: int) -> Iterator[ImageBatch]:
        """Yield the training batches of one of `workers` loading processes.

        Raises:
            UserError: an image cannot be read.
        """

    @abstractmethod
    def test_batches(
        self, batch_size: int, rank: int, world: int, worker: int, workers: int
    ) -> Iterator[ImageBatch]:
        """Yield the test batches of one of `workers` loading processes.

        Raises:
            UserError: an image cannot be read.
        """

    @abstractmethod
    def most_workers(self, world: int) -> int:
        """Return the largest number of loading processes of each of `world` processes."""

    @abstractmethod
    def expected_images(self, rank: int, world: int) -> int | None:
        """Return the number of images in one rank's test batches, or None if it is unknown."""


@dataclass(frozen=True)
class ImageSplit(Split):
    """A split whose images can be read by index.

    Attributes:
        images: tensor `(N, 3, H, W)`, uint8 in [0, 255] or float32 in [0, 1], or `ImageFiles`.
        labels: class of each image, `(N,)` int64.
        downscale: length in pixels to which the shorter side of an image is first reduced, or None
            to keep its size. Downscaling removes fine detail (Section 4.3 of the paper).
        decode: decoding of JPEG files, `exact` or `fast`; see `read_fast`.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    downscale: int | None = None
    decode: str = "exact"
    random_access = True

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor | Image.Image, int]:
        """Return an image and its label. The image is a tensor `(3, H, W)` or a PIL RGB image."""
        return self._image(i), int(self.labels[i])

    def _image(self, i: int) -> Any:
        if isinstance(self.images, Tensor):
            image: Any = self.images[i]
        elif self.decode == "fast":
            # The decoded image needs twice the resolution of the test view, because a random crop
            # may show only a part of the image.
            shorter = round(2 * transforms.TEST_SCALE * self.image_size)
            image = read_fast(self.images.path(i), shorter, self.decoding)
        else:
            image = decode(self.images.path(i), decoding=self.decoding)
        return transforms.downscale(image, self.downscale) if self.downscale else image

    def read(self, indices: Tensor) -> Tensor | Iterator[Tensor | Image.Image]:
        """Return the images at the indices: a tensor `(n, 3, H, W)`, or an iterator for files."""
        if not isinstance(self.images, Tensor):
            return (self._image(i) for i in indices.tolist())
        if self.downscale and len(indices):
            return torch.stack([self._image(i) for i in indices.tolist()])
        return self.images[indices]

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of images and labels; for files, of names, sizes and labels.

        Equal data has the same fingerprint on every machine.
        """
        if isinstance(self.images, Tensor):
            return fingerprint(self.images, self.labels)
        return self.images.fingerprint(self.labels)

    def class_sizes(self) -> list[int]:
        return self.labels.bincount(minlength=self.classes).tolist()

    def content_digest(self) -> str:
        """Read all images and return the SHA-256 (hex) of their bytes and labels."""
        if isinstance(self.images, Tensor):
            return fingerprint(self.images, self.labels)
        return self.images.content_digest(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSplit:
        """Return a split with only these images, in this order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.images, Tensor):
            images = self.images[indices]
        else:
            images = dataclasses.replace(self.images, names=self.images.names[indices.numpy()])
        return dataclasses.replace(self, images=images, labels=self.labels[indices])

    def sample(self, count: int, seed: int) -> ImageSplit:
        """Return `count` random images (all images if there are fewer)."""
        generator = torch.Generator().manual_seed(seed)
        return self.subset(torch.randperm(len(self), generator=generator)[:count])

    def train_batches(self, epoch: TrainEpoch, worker: int, workers: int) -> Iterator[ImageBatch]:
        """Yield training batches. Each image depends only on seed, epoch and position."""
        augment = transforms.AUGMENTATIONS[epoch.augmentation]
        position = np.array([transforms.NO_IMAGE], np.uint64)
        order_seed = int(transforms.image_seeds(epoch.seed, epoch.epoch, position)[0])
        generator = torch.Generator().manual_seed(order_seed)
        order = torch.randperm(len(self), generator=generator)
        share = epoch.batch_size // epoch.world
        for batch in range(epoch.start + worker, len(self) // epoch.batch_size, workers):
            first = batch * epoch.batch_size + epoch.rank * share
            chosen = order[first : first + share]
            positions = np.arange(first, first + share)
            seeds = transforms.image_seeds(epoch.seed, epoch.epoch, positions)
            pixels, numbers = augment(self.read(chosen), seeds, self.image_size)
            yield ImageBatch(pixels, self.labels[chosen], numbers)

    def test_batches(
        self, batch_size: int, rank: int, world: int, worker: int, workers: int
    ) -> Iterator[ImageBatch]:
        """Yield test batches in order. Rank 0 gets the first images."""
        share = torch.arange(len(self)).tensor_split(world)[rank]
        for chosen in share.split(batch_size)[worker::workers] if len(share) else ():
            pixels = transforms.centered(self.read(chosen), self.image_size)
            yield ImageBatch(pixels, self.labels[chosen])

    def most_workers(self, world: int) -> int:
        return len(self)

    def expected_images(self, rank: int, world: int) -> int:
        return len(torch.arange(len(self)).tensor_split(world)[rank])


def has_images(split: Split) -> TypeGuard[ImageSplit]:
    """Return whether the images of a split can be read by index."""
    return split.random_access


def require_images(split: Split, place: str) -> ImageSplit:
    """Return a split whose images can be read by index.

    Args:
        split: split of a dataset.
        place: option and path of the dataset, or its name, for the message.

    Raises:
        UserError: the images are in shards.
    """
    if not has_images(split):
        raise UserError(
            f"{place}: these are shards, whose images cannot be read by index. Pass a folder of "
            "images."
        )
    return split


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """Return the SHA-256 (hex) of the images' shape, their float32 values in [0, 1] and the labels.

    Args:
        images: tensor `(N, 3, H, W)`, uint8 in [0, 255] or float32 in [0, 1].
        labels: class of each image, `(N,)` int64.
    """
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for block in images.split(1000):
        values = block.float() / 255 if block.dtype == torch.uint8 else block
        digest.update(values.cpu().contiguous().numpy().astype("<f4").tobytes())
    digest.update(labels.cpu().contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def balanced(labels: Tensor, count: int, seed: int = SUBSET_SEED) -> Tensor:
    """Select `count` images with equal numbers per class, as far as possible.

    Args:
        labels: class of each image, `(N,)` int64.
        count: number of images, at most N.
        seed: seed for the random selection.

    Returns:
        Sorted indices `(count,)`, the same in every call.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.numpy()[order]
    # Position of each image within its class. Sorting by position puts the first image of every
    # class first, then the second image of every class, and so on.
    turn = np.empty(len(order), np.int64)
    for label in np.unique(shuffled):
        positions = np.flatnonzero(shuffled == label)
        turn[positions] = np.arange(len(positions))
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return torch.from_numpy(np.sort(chosen))


def held_out_mask(labels: Tensor, fraction: float, seed: int = SUBSET_SEED + 1) -> Tensor:
    """Select a random fraction of each class, with at least one image.

    Args:
        labels: class of each image, `(N,)` int64.
        fraction: fraction of each class to select, in [0, 1).
        seed: seed for the random selection.

    Returns:
        `(N,)` bool mask of the selected images.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.numpy()[order]
    mask = np.zeros(len(order), bool)
    for label in np.unique(shuffled):
        members = order[shuffled == label]
        mask[members[: max(1, round(fraction * len(members)))]] = True
    return torch.from_numpy(mask)
