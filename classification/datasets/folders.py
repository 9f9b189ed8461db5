"""Image folders `train/<class>/<image>` and `test/<class>/<image>`, and tar files of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from robust_backbones.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from classification.datasets.split import Files

# Folder names of a split, the first that exists is read.
FOLDERS = {"train": ("train",), "test": ("test", "val", "valid")}
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LAYOUT = "expected {0}/train/<class>/<image> and {0}/test/<class>/<image> (or val instead of test)"


def is_image(name: str) -> bool:
    """By its ending. Hidden files are none: macOS leaves `._x.jpg` behind."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGES) and not base.startswith(".")


def read_tree(split: str, root: str | Path) -> tuple[Files, Tensor, tuple[str, ...]]:
    """The images of a split, sorted by class and name, and not opened yet.

    Raises:
        UserError: another layout, an empty class, or classes that differ between the splits.
    """
    root = Path(root)
    folder = split_folder(root, split)
    names, labels = [], []
    classes = _classes(folder)
    _check_same_classes(root, folder, classes)
    for label, name in enumerate(classes):
        found = sorted(_below(folder, name))
        if not found:
            raise UserError(f"class folder {folder / name} has no image; remove it or fill it.")
        names += found
        labels += [label] * len(found)
    import numpy as np
    import torch

    from classification.datasets.split import Files

    packed = np.array([os.fsencode(name) for name in names])
    return Files(folder, packed), torch.tensor(labels), tuple(classes)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split.

    Raises:
        UserError: no such folder.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {reason}; {LAYOUT.format(root)}.")
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    wanted = " or ".join(f"'{name}'" for name in FOLDERS[split])
    raise UserError(f"{root} has no folder {wanted}; {LAYOUT.format(root)}.")


def _classes(folder: Path) -> list[str]:
    """Names of the class folders, sorted; images without one are a mistake, not a small class."""
    flat = 0
    classes = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                classes.append(entry.name)
            flat += is_image(entry.name) and not entry.is_dir()
    if flat:
        raise UserError(
            f"{flat} images of {folder} lie flat: sort them into class folders "
            f"{folder}/<class>/, named as those of train."
        )
    if not classes:
        raise UserError(f"{folder} has no class folders; {LAYOUT.format(folder.parent)}.")
    if len(classes) == 1:
        raise UserError(
            f"{folder} has one class folder, '{classes[0]}'; there is nothing to tell "
            "apart: give two or more."
        )
    return sorted(classes)


def _check_same_classes(root: Path, folder: Path, classes: list[str]) -> None:
    """Labels are numbers of sorted names: other names would mean other labels."""
    for names in FOLDERS.values():
        for other in (root / name for name in names):
            if other == folder or not other.is_dir():  # a split that nobody opens may be absent
                continue
            others = _classes(other)
            more, less = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
            if more or less:
                raise UserError(
                    f"the classes of {folder} and {other} differ: only the first has "
                    f"{_some(more)}, only the second has {_some(less)}; give both the same folders."
                )


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
    )


def _below(folder: Path, name: str) -> Iterator[str]:
    """Images below `folder/name`, relative to `folder`."""
    for path, _, files in os.walk(folder / name, followlinks=True):
        relative = Path(path).relative_to(folder).as_posix()
        yield from (f"{relative}/{file}" for file in files if is_image(file))
