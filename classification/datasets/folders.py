"""List the images of image folders, `train/<class>/<image>` and `test/<class>/<image>`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.images import has_image_suffix

# Possible folder names of each split. The first folder that exists is read.
FOLDERS = {"train": ("train",), "test": ("test", "val", "valid")}
LAYOUT = "{0}/train/<class>/<image> and {0}/test/<class>/<image> (or val instead of test)"


def is_image(name: str) -> bool:
    """Return whether a file name has an image extension and is not hidden, unlike `._x.jpg`."""
    base = name.rsplit("/", 1)[-1]
    return has_image_suffix(base) and not base.startswith(".")


def list_tree(split: str, root: str | Path) -> tuple[Path, list[str], list[int], list[str]]:
    """List the images of a split.

    Args:
        split: `train` or `test`.
        root: folder of the dataset.

    Returns:
        Folder of the split; image paths in this folder, sorted by class and name; label of each
        image, from 0; class names.

    Raises:
        UserError: the folder has a different layout, a class has no images, or the splits have
            different classes.
    """
    folder = split_folder(Path(root), split)
    _check_same_classes(Path(root), folder)
    return folder, *list_classes(folder)


def list_classes(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """List the images of a folder that contains class folders.

    Returns:
        Image paths, labels and class names, as for `list_tree`.

    Raises:
        UserError: the folder has a different layout, or a class has no images.
    """
    names, labels = [], []
    classes = _classes(folder)
    for label, name in enumerate(classes):
        found = sorted(_images_below(folder, name))
        if not found:
            raise UserError(
                f"{folder / name}: this class folder has no images. Add some, or remove it."
            )
        names += found
        labels += [label] * len(found)
    return names, labels, classes


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split.

    Raises:
        UserError: the folder does not exist.
    """
    expected = f"Expected {LAYOUT.format(root)}."
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {reason}. {expected}")
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    wanted = " or ".join(f"'{name}'" for name in FOLDERS[split])
    raise UserError(f"{root} has no folder {wanted}. {expected}")


def _classes(folder: Path) -> list[str]:
    """Return the sorted names of the class folders."""
    loose = 0
    classes = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                classes.append(entry.name)
            loose += is_image(entry.name) and not entry.is_dir()
    if loose:
        raise UserError(
            f"{folder}: {loose} images are not in class folders. Move them to {folder}/<class>/, "
            "with the same class names as in train."
        )
    if not classes:
        raise UserError(f"{folder} has no class folders. Expected {LAYOUT.format(folder.parent)}.")
    if len(classes) == 1:
        raise UserError(
            f"{folder} has only one class folder, '{classes[0]}'. Classification needs two or more."
        )
    return sorted(classes)


def _check_same_classes(root: Path, folder: Path) -> None:
    """Check that the splits have the same class names. Labels are indices of the sorted names."""
    classes = _classes(folder)
    for names in FOLDERS.values():
        for other in (root / name for name in names):
            if other == folder or not other.is_dir():  # the other split may be missing
                continue
            others = _classes(other)
            more, less = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
            if more or less:
                raise UserError(
                    f"{folder} and {other} have different classes: only the first has "
                    f"{_shortened(more)}, only the second has {_shortened(less)}. Create the same "
                    "class folders in both."
                )


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"


def _images_below(folder: Path, name: str) -> Iterator[str]:
    """Yield the images in `folder/name` and its subfolders, relative to `folder`."""
    for path, _, files in os.walk(folder / name, followlinks=True):
        relative = Path(path).relative_to(folder).as_posix()
        yield from (f"{relative}/{file}" for file in files if is_image(file))
