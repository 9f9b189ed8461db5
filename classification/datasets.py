"""Datasets: one row each. `open_split` opens one and only then imports torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from robust_backbones.errors import UserError
from robust_backbones.zoo import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from classification.shards import ShardSource
    from classification.sources import Source

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """One classification task.

    Attributes:
        classes: number of classes; None: as many as the data has.
        image_size: height and width of the images that a classifier of it sees, pixels.
        mean, std: RGB statistics that a classifier of it normalises with, for images in [0, 1].
        augmentation: a key of `transforms.AUGMENTATIONS`, for training.
        reader: `module:function`, imported when needed; `(split, root)` -> images, labels, class
            names, as in `sources.Source`. Its splits are train and test.
        images: split -> number of images, where known; another number is an error.
        needs_root: whether the user says where the data lies.
        shards: whether WebDataset tar files are understood, see `shards`.
        recipe: a key of `recipes.RECIPES`: how a network is trained on it from nothing.
    """

    classes: int | None
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    reader: str
    images: dict[str, int] = field(default_factory=dict)
    needs_root: bool = True
    shards: bool = False
    recipe: str = "paper"


CIFAR = {"train": 50_000, "test": 10_000}
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_HERE = "classification."
DATASETS = {
    # ImageNet's statistics, so that the weights fit the detector's input contract as they are.
    "digits": Dataset(10, 32, *_IMAGENET, "shift2", _HERE + "embedded:read_digits",
                      {"train": 1437, "test": 360}, needs_root=False, recipe="quick"),
    "textures": Dataset(6, 32, *_IMAGENET, "crop4_flip", _HERE + "embedded:read_textures",
                        {"train": 3906, "test": 384}, needs_root=False, recipe="quick"),
    "faces": Dataset(2, 32, *_IMAGENET, "crop4_flip", _HERE + "embedded:read_faces",
                     {"train": 150, "test": 50}, needs_root=False, recipe="quick"),
    # Statistics as the published models' library has them.
    "cifar10": Dataset(10, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "crop4_flip",
                       _HERE + "cifar:read_cifar10", CIFAR, recipe="cifar"),
    "cifar100": Dataset(100, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "crop4_flip",
                        _HERE + "cifar:read_cifar100", CIFAR, recipe="cifar"),
    "imagenet": Dataset(1000, 224, *_IMAGENET, "imagenet", _HERE + "folders:read_tree",
                        {"train": 1_281_167, "test": 50_000}, shards=True),
    "folder": Dataset(None, 224, *_IMAGENET, "imagenet", _HERE + "folders:read_tree", shards=True),
}  # fmt: skip


def open_split(name: str, split: str, root: Path | str | None = None, *,
               image_size: int | None = None, limit: int | None = None, held_out: float = 0.0,
               ) -> Source | ShardSource:  # fmt: skip
    """Open one split.

    Args:
        name: a key of `DATASETS`.
        split: `train`, `test`, or `val`: the held-out part of the training images.
        root: where the data lies, for datasets that are not embedded; a `str` if it is a URL.
        image_size: height and width to train and test with, pixels (default: the dataset's).
        limit: only so many images, as many of each class as possible, always the same ones.
            Shards: at least so many, in whole shards.
        held_out: part of each class of the training images, in [0, 1), that `val` has and `train`
            lacks. Not for shards.

    Raises:
        UserError: unknown name or split, no root, or the data is not as expected.
    """
    row = _row(name, split, root)
    if split == "val" and not held_out:
        raise UserError(f"{name} has no split 'val' of its own; say which part of the training "
                        "images to hold out.")  # fmt: skip
    if not 0 <= held_out < 1:
        raise UserError(f"{held_out} cannot be held out; choose a part in [0, 1).")
    if row.shards:
        from classification import shards

        if shards.are_shards(root):
            if held_out:
                raise UserError("nothing can be held out of shards; make shards of two folders.")
            return shards.open_shards(name, row, split, root, image_size, limit)
    return _cut(_open(name, row, split, root, image_size), held_out, limit)


def _row(name: str, split: str, root) -> Dataset:
    if name not in DATASETS:
        raise UserError(f"dataset '{name}' is unknown; one of: {', '.join(DATASETS)}.")
    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown to {name}; one of: {', '.join(SPLITS)}.")
    if DATASETS[name].needs_root and root is None:
        raise UserError(f"dataset '{name}' comes with no data; say where it lies: --data PATH.")
    return DATASETS[name]


def _open(name: str, row: Dataset, split: str, root, image_size: int | None) -> Source:
    from classification.sources import Source

    official = "train" if split == "val" else split
    images, labels, class_names = _reader(row)(official, root)
    check_classes(name, row, root, len(class_names))
    expected = row.images.get(official, len(labels))
    if len(labels) != expected:
        raise UserError(f"{root} has {len(labels)} {official} images, {name} has {expected}; fetch "
                        "it again, or use the dataset 'folder' for a part of it.")  # fmt: skip
    return Source(name=name, split=split, classes=len(class_names),
                  image_size=image_size or row.image_size, mean=row.mean, std=row.std,
                  augmentation=row.augmentation, images=images, labels=labels,
                  class_names=class_names)  # fmt: skip


def _reader(row: Dataset):
    module, function = row.reader.split(":")
    return getattr(importlib.import_module(module), function)


def check_classes(name: str, row: Dataset, root, found: int) -> None:
    """Refuse data that has another number of classes than its row.

    Raises:
        UserError: so it is.
    """
    if row.classes not in (None, found):
        raise UserError(f"{root} has {found} classes, {name} has {row.classes}; use the dataset "
                        "'folder' for data of your own.")  # fmt: skip


def _cut(source: Source, held_out: float, limit: int | None) -> Source:
    from classification import sources

    if held_out and source.split != "test":
        mask = sources.held_out(source.labels, held_out)
        wanted = mask if source.split == "val" else ~mask
        source = source.subset(wanted.nonzero().flatten())
    if limit is None:
        return source
    if not source.classes <= limit <= len(source):
        raise UserError(f"a limit of {limit} images is not possible: {source.name} {source.split} "
                        f"has {source.classes} classes and {len(source)} images.")  # fmt: skip
    return source.subset(sources.balanced(source.labels, limit))
