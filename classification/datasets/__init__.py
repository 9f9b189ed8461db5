"""List, check and fetch the datasets.

They are the rows of `specs`. `open_split` opens one and only then imports torch.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from classification.datasets.specs import DATASETS, METRICS, SUITE, Dataset, check_classes, find
from robust_backbones.core.errors import UserError

if TYPE_CHECKING:
    from classification.datasets.shards import ShardSource
    from classification.datasets.split import Source

__all__ = [
    "DATA",
    "DATASETS",
    "METRICS",
    "SPLITS",
    "SUITE",
    "Dataset",
    "find",
    "open_split",
    "place",
]
SPLITS = ("train", "val", "test")


DATA = "ROBUST_BACKBONES_DATA"  # environment variable: a folder with one folder per dataset


def open_split(
    name: str,
    split: str,
    root: Path | str | None = None,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    held_out: float = 0.0,
) -> Source | ShardSource:
    """Open one split.

    Args:
        name: a key of `DATASETS`.
        split: `train`, `test`, or `val`: the held-out part of the training images.
        root: where the data lies, for datasets that are not embedded, see `place`; a `str` if it
            is a URL.
        image_size: height and width to train and test with, pixels (default: the dataset's).
        limit: only so many images, as many of each class as possible, always the same ones.
            Shards: at least so many, in whole shards.
        held_out: part of each class of the training images, in [0, 1), that `val` has and `train`
            lacks. Not for shards.

    Raises:
        UserError: unknown name or split, no root, or the data is not as expected.
    """
    row = find(name)
    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown to {name}; one of: {', '.join(SPLITS)}.")
    root = place(name, root)
    if split == "val" and not held_out:
        raise UserError(
            f"{name} has no split 'val' of its own; say which part of the training "
            "images to hold out."
        )
    if not 0 <= held_out < 1:
        raise UserError(f"{held_out} cannot be held out; choose a part in [0, 1).")
    if row.shards and root is not None:
        from classification.datasets import shards

        if shards.are_shards(root):
            if held_out:
                raise UserError("nothing can be held out of shards; make shards of two folders.")
            return shards.open_shards(name, row, split, root, image_size, limit)
    return _cut(_open(name, row, split, root, image_size), held_out, limit)


def place(name: str, root: Path | str | None = None) -> Path | str | None:
    """Where a dataset lies: `root`, or the folder `name` in it if it has one.

    Args:
        name: a key of `DATASETS`.
        root: the dataset's own folder, tar file or URL, or the folder that has a folder for each
            dataset; None: `$ROBUST_BACKBONES_DATA`.

    Returns:
        None for embedded data without a root.

    Raises:
        UserError: neither root nor variable, for a dataset that needs it.
    """
    if not DATASETS[name].needs_root:
        return root
    root = root or os.environ.get(DATA) or None
    if root is None:
        raise UserError(
            f"dataset '{name}' comes with no data; say where it lies: --data PATH, or "
            f"set {DATA} to the folder that holds {name}/."
        )
    below = os.path.join(root, name)
    # A root with image folders of its own is the dataset's, whatever else lies in it.
    return Path(below) if os.path.isdir(below) and not has_train(root) else root


def has_train(root: str | Path) -> bool:
    """Whether `root` is laid out as image folders."""
    return os.path.isdir(os.path.join(root, "train"))


def _open(
    name: str, row: Dataset, split: str, root: str | Path | None, image_size: int | None
) -> Source:
    from classification.datasets.split import Source

    official = "train" if split == "val" else split
    images, labels, class_names = reader(row)(official, root)
    check_classes(name, row, root, len(class_names))
    _check_images(name, row, root, official, len(labels))
    return Source(
        name=name,
        split=split,
        classes=len(class_names),
        image_size=image_size or row.image_size,
        mean=row.mean,
        std=row.std,
        augmentation=row.augmentation,
        images=images,
        labels=labels,
        class_names=class_names,
    )


def _check_images(name: str, row: Dataset, root: str | Path | None, split: str, found: int) -> None:
    expected = row.images.get(split, found)
    if found == expected:
        return
    if row.exact:
        raise UserError(
            f"{root} has {found} {split} images, {name} has {expected} "
            f"({row.rule}); fetch it again, or use the dataset 'folder' for a part of "
            "it."
        )
    logging.getLogger(__name__).warning(
        "%s has %d %s images, the authors' copy of %s had %d: their numbers are not comparable",
        root,
        found,
        split,
        name,
        expected,
    )


def reader(row: Dataset) -> Callable:
    """The function that reads the data of a row."""
    module, function = row.reader.split(":")
    return getattr(importlib.import_module(module), function)


def _cut(source: Source, held_out: float, limit: int | None) -> Source:
    from classification.datasets import split as sources

    if held_out and source.split != "test":
        mask = sources.held_out(source.labels, held_out)
        wanted = mask if source.split == "val" else ~mask
        source = source.subset(wanted.nonzero().flatten())
    if limit is None:
        return source
    if not source.classes <= limit <= len(source):
        raise UserError(
            f"a limit of {limit} images is not possible: {source.name} {source.split} "
            f"has {source.classes} classes and {len(source)} images."
        )
    return source.subset(sources.balanced(source.labels, limit))
