"""Datasets: one row each. `open_split` opens one and only then imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from classification import embedded
from robust_backbones.errors import UserError
from robust_backbones.zoo import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import Tensor

    from classification.sources import Source

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """One classification task.

    Attributes:
        classes: number of classes.
        image_size: height and width of the images that a classifier of it sees, pixels.
        mean, std: RGB statistics that a classifier of it normalises with, for images in [0, 1].
        augmentation: a key of `transforms.AUGMENTATIONS`, for training.
        read: `(split, root)` -> images, labels, class names, as in `sources.Source`; `split` is
            train or test.
        images: split -> number of images, where known; another number is an error.
        needs_root: whether the user says where the data lies.
    """

    classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    read: Callable
    images: dict[str, int]
    needs_root: bool = False


DATASETS = {
    # ImageNet's statistics, so that the weights fit the detector's input contract as they are.
    "digits": Dataset(10, 32, IMAGENET_MEAN, IMAGENET_STD, "shift2", embedded.read_digits,
                      {"train": 1437, "test": 360}),
}  # fmt: skip


def open_split(name: str, split: str, root: Path | None = None, *, image_size: int | None = None,
               limit: int | None = None, held_out: float = 0.0) -> Source:  # fmt: skip
    """Open one split.

    Args:
        name: a key of `DATASETS`.
        split: `train`, `test`, or `val`: the held-out part of the training images.
        root: where the data lies, for datasets that are not embedded.
        image_size: height and width to train and test with, pixels (default: the dataset's).
        limit: only so many images, as many of each class as possible, always the same ones.
        held_out: part of each class of the training images, in [0, 1), that `val` has and `train`
            lacks.

    Raises:
        UserError: unknown name or split, no root, or the data is not as expected.
    """
    from classification import sources

    row = _row(name, split, root)
    if split == "val" and not held_out:
        raise UserError(f"{name} has no split 'val' of its own; say which part to hold out.")
    source = _open(name, row, "train" if split == "val" else split, root, image_size)
    if held_out and split != "test":
        mask = sources.held_out(source.labels, held_out)
        source = source.subset((mask if split == "val" else ~mask).nonzero().flatten())
    if limit is not None:
        if not source.classes <= limit <= len(source):
            raise UserError(f"a limit of {limit} images is not possible: {name} {split} has "
                            f"{source.classes} classes and {len(source)} images.")  # fmt: skip
        source = source.subset(sources.balanced(source.labels, limit))
    return source


def _row(name: str, split: str, root) -> Dataset:
    if name not in DATASETS:
        raise UserError(f"dataset '{name}' is unknown; one of: {', '.join(DATASETS)}.")
    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown to {name}; one of: {', '.join(SPLITS)}.")
    if DATASETS[name].needs_root and root is None:
        raise UserError(f"{name} is not embedded; say where it lies with --data PATH.")
    return DATASETS[name]


def _open(name: str, row: Dataset, split: str, root, image_size: int | None) -> Source:
    from classification.sources import Source

    images, labels, class_names = row.read(split, root)
    return Source(name=name, split=split, classes=row.classes,
                  image_size=image_size or row.image_size, mean=row.mean, std=row.std,
                  augmentation=row.augmentation, images=images, labels=labels,
                  class_names=class_names)  # fmt: skip


def load(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, H, W)` float RGB in [0, 1] and labels `(N,)` int64 of an embedded dataset.

    Raises:
        UserError: `name` is not in `DATASETS`, or the dataset has no such split.
    """
    return _row(name, split, None).read(split, None)[:2]


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """See `sources.fingerprint`."""
    from classification import sources

    return sources.fingerprint(images, labels)
