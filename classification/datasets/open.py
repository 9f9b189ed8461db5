"""Open one split of a dataset."""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from classification.datasets import embedded
from classification.datasets.cifar import read_cifar
from classification.datasets.folders import below_wrappers, list_classes
from classification.datasets.image_files import ImageFiles, SplitContents, read_tree
from classification.datasets.layouts import OFFICIAL
from classification.datasets.shard_index import are_shards
from classification.datasets.shards import open_shards
from classification.datasets.specs import SPLITS, DatasetSpec, find_dataset, locate
from classification.datasets.split import ImageSplit, Split, balanced, held_out_mask, require_images
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding

SHOWN = 5  # maximum number of names in an error message
# Maps a dataset to a function from (split, root) to the contents of the split, train or test. All
# other datasets are image folders with a training and a test folder.
READERS: dict[str, Callable[[str, str | Path], SplitContents]] = {
    "digits": embedded.read_digits,
    "textures": embedded.read_textures,
    "faces": embedded.read_faces,
    "cifar10": partial(read_cifar, "cifar10"),
    "cifar100": partial(read_cifar, "cifar100"),
    "folder": partial(read_tree, divide=True),
    **OFFICIAL,
}


def open_split(
    name: str,
    split: str,
    root: Path | str | None = None,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    held_out: float = 0.0,
    decoding: Decoding | None = None,
) -> Split:
    """Open one split of a dataset.

    Args:
        name: dataset, such as `cifar10` or `folder`. `robust-backbones datasets list` lists all.
        split: `train`, `test`, or `val`, which is the held-out part of the training images.
        root: path or URL (str) of the data; None: `$ROBUST_BACKBONES_DATA`. Embedded
            datasets need none.
        image_size: height and width of the transformed images, pixels (default: the dataset's).
        limit: largest number of images to select (default: all), the same images in each call. The
            classes are balanced as far as possible. For shards, whole shards are selected that have
            at least this many images in total.
        held_out: fraction of the training images of each class, in [0, 1), that is in `val` instead
            of `train`. Shards do not support a held-out part.
        decoding: settings of the image decoder.

    Raises:
        UserError: the name or split is unknown, no root is given, or the data is invalid;
            `decoding` has a range of values, but the dataset has no image files.
    """
    spec, decoding = find_dataset(name), decoding or Decoding()
    if split not in SPLITS:
        raise UserError(f"split '{split}' of {name} is unknown. Choose from {', '.join(SPLITS)}.")
    root = locate(name, root)
    if split == "val" and not held_out:
        raise UserError(
            f"{name} has no split 'val'. Choose the part of the training images to hold out."
        )
    if not 0 <= held_out < 1:
        raise UserError(f"held-out part {held_out} is invalid. Choose a number in [0, 1).")
    if spec.shards and root is not None and are_shards(root):
        if held_out:
            raise UserError(
                f"{root}: shards do not support a held-out part. Write separate shards for the "
                "images to hold out."
            )
        return replace(open_shards(spec, split, root, image_size, limit), decoding=decoding)
    opened = _read(spec, split, root, image_size)
    if decoding.values and not isinstance(opened.images, ImageFiles):
        raise UserError(f"{decoding.option.split()[0]}: {name} has 8-bit images. Omit the option.")
    return _select(replace(opened, decoding=decoding), held_out, limit)


def open_images(
    name: str,
    split: str,
    root: Path | str | None = None,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    decoding: Decoding | None = None,
) -> ImageSplit:
    """Open one split whose images can be read by index. The arguments are as for `open_split`.

    Raises:
        UserError: as for `open_split`, or the data is in shards.
    """
    opened = open_split(name, split, root, image_size=image_size, limit=limit, decoding=decoding)
    return require_images(opened, f"--data {root}")


def open_test_folder(
    name: str, folder: Path, test: ImageSplit, limit: int | None = None
) -> ImageSplit:
    """Open a folder `<class>/<image>` with further test images of the classes of a dataset.

    The folder may contain only some of the classes. Images are decoded and transformed as in
    `test`.

    Args:
        name: name of the new split.
        folder: folder with the class folders.
        test: test split of the dataset.
        limit: largest number of images to select, as for `open_split`.

    Raises:
        UserError: a folder is not named like a class of the dataset, or `folder` has another
            layout.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder. Give a folder with <class>/<image>.")
    found = list_classes(below_wrappers(folder))
    # Folders that were copied from macOS may have decomposed accents.
    known = {unicodedata.normalize("NFC", each): i for i, each in enumerate(test.class_names)}
    names = [unicodedata.normalize("NFC", each) for each in found.class_names]
    if unknown := [each for each in names if each not in known]:
        shown = ", ".join(f"'{each}'" for each in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if unknown[SHOWN:] else ""
        raise UserError(
            f"{found.folder}: {test.name} has no class {shown}{more}. Name the folders after the "
            f"classes of {test.name}, such as '{test.class_names[0]}'."
        )
    for note in found.skipped_note:
        _announce(note)
    labels = torch.tensor([known[names[label]] for label in found.labels])
    files = ImageFiles.of(found.folder, found.names)
    return _select(
        replace(test, name=name, split=name, origin="", images=files, labels=labels), 0.0, limit
    )


def _read(
    spec: DatasetSpec, split: str, root: str | Path | None, image_size: int | None
) -> ImageSplit:
    official = "train" if split == "val" else split
    reader = READERS.get(spec.name, read_tree)
    found = reader(official, root or "")
    spec.check_classes(root, len(found.class_names))
    _check_images(spec, root, official, len(found.labels))
    for note in found.notes:
        _announce(note)
    return ImageSplit(
        name=spec.name,
        split=split,
        classes=len(found.class_names),
        image_size=image_size or spec.image_size,
        statistics=spec.statistics,
        augmentation=spec.augmentation,
        class_names=found.class_names,
        origin=found.origin,
        images=found.images,
        labels=found.labels,
    )


@functools.cache  # both splits have the same notes
def _announce(note: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # torchrun sets it
        logging.getLogger(__name__).warning(note)


def _check_images(spec: DatasetSpec, root: str | Path | None, split: str, found: int) -> None:
    expected = spec.images.get(split, found)
    if found == expected:
        return
    if spec.exact_counts:
        raise UserError(
            f"{root}: found {found} {split} images, but {spec.name} has {expected} "
            f"({spec.split_rule}). Fetch it again, or use the dataset 'folder' for a part of it."
        )
    logging.getLogger(__name__).warning(
        "%s: found %d %s images, but the paper's authors had %d of %s; numbers are not comparable "
        "with theirs",
        root,
        found,
        split,
        expected,
        spec.name,
    )


def _select(opened: ImageSplit, held_out: float, limit: int | None) -> ImageSplit:
    if held_out and opened.split != "test":
        mask = held_out_mask(opened.labels, held_out)
        wanted = mask if opened.split == "val" else ~mask
        opened = opened.subset(wanted.nonzero().flatten())
    if limit is None or limit >= len(opened):
        return opened
    if limit < opened.classes:
        raise UserError(
            f"a limit of {limit} images is less than the {opened.classes} classes of "
            f"{opened.name}. Choose at least {opened.classes}."
        )
    return opened.subset(balanced(opened.labels, limit))
