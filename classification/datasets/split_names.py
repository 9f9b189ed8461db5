"""Names of split folders, and of files and folders that are ignored everywhere."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path

from robust_backbones.core.errors import UserError

# Possible folder names of each split. Case is ignored. `val` is read as the test split if there is
# no `test`.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
# Files and folders that other programs create. They are ignored at every level.
JUNK = (
    ".[!.]*",  # hidden: .git, .ipynb_checkpoints, .DS_Store, and ._x.jpg of macOS
    "__macosx",
    "__pycache__",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "desktop.ini",
)
_JUNK = re.compile("|".join(map(fnmatch.translate, JUNK)), re.IGNORECASE)


def is_junk(name: str) -> bool:
    """Return whether a file or folder name is in the table `JUNK`."""
    return _JUNK.match(name) is not None


def split_of(name: str) -> str | None:
    """Return the split of a folder name, a key of `SPLIT_NAMES`; None for other names."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def choose_splits(names: Iterable[str], where: object) -> tuple[dict[str, str], str | None]:
    """Choose the names of the training and the test split.

    Args:
        names: names of folders or of groups of files. Names that match no split are ignored.
        where: path for the error message.

    Returns:
        Name of each split, `train` and `test`, that exists; and the name of the validation split
        if it is not used because there is a test split.

    Raises:
        UserError: two names mean the same split, such as `train` and `Train`.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        if split := split_of(name):
            if split in found:
                raise UserError(
                    f"{where}: '{found[split]}' and '{name}' both mean the {split} split. Rename "
                    "or remove one."
                )
            found[split] = name
    val = found.pop("val", None)
    if val and "test" not in found:
        found["test"], val = val, None
    return found, val


def has_splits(root: str | Path) -> bool:
    """Return whether a folder contains a folder with the name of a split."""
    if not os.path.isdir(root):
        return False
    with os.scandir(root) as entries:
        return any(split_of(entry.name) and entry.is_dir() for entry in entries)
