"""The transfer tasks as their makers lay them out, or as image folders: `aircraft` ... `sun397`.

Each is a reader `(split, root) -> images, labels, class names`, as in `sources.Source`. Images are
in the order of their labels, then of their names; labels are those of torchvision.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from classification.datasets import folders, indexes
from classification.datasets.indexes import Listing
from classification.datasets.split import Files
from robust_backbones.core.errors import UserError


@dataclass(frozen=True)
class Official:
    """One task's own layout.

    Attributes:
        name: of the dataset.
        folders: what the official archives unpack to, as torchvision names it.
        index: `(parts, split) -> Listing`; see `indexes`.
        parts: what it reads -> where that lies in the folder, alternatives in order.
        partial: whether listed images may be absent: they cannot be had any more.
    """

    name: str
    folders: tuple[str, ...]
    index: Callable[[dict[str, Path], str], Listing]
    parts: dict[str, tuple[str, ...]]
    partial: bool = False

    def __call__(self, split: str, root: str | Path) -> tuple[Files, Tensor, tuple[str, ...]]:
        """The images of a split, not opened yet.

        Raises:
            UserError: neither layout is there, an index file is damaged, or images are missing.
        """
        kind, folder = self.layout(root)
        if kind == "folders":
            return folders.read_tree(split, folder)
        try:
            images, listed, classes = self.index(self._find(folder)[0], split)
            pairs = sorted(listed, key=lambda pair: (pair[1], pair[0]))
            self._check(folder, pairs, len(classes))
        except UserError:
            raise
        except (
            OSError,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise UserError(
                f"the {split} index of {self.name} in {folder} is damaged ({error!r}); "
                "fetch it again."
            ) from None
        pairs = self._present(images, pairs)
        names = np.array([os.fsencode(name) for name, _ in pairs])
        labels = torch.tensor([label for _, label in pairs])
        return Files(images, names), labels, tuple(classes)

    def layout(self, root: str | Path) -> tuple[str, Path]:
        """Which layout `root` has: ("official" or "folders", its folder).

        Raises:
            UserError: neither, or only part of one.
        """
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; {self._wanted(root)}.")
        missing = {}
        for folder in [*(root / name for name in self.folders), root]:
            found, missing[folder] = self._find(folder)
            if not missing[folder]:
                return "official", folder
        if any((root / name).is_dir() for names in folders.FOLDERS.values() for name in names):
            return "folders", root
        nearest = min(missing, key=lambda folder: len(missing[folder]))
        if len(missing[nearest]) == len(self.parts):
            raise UserError(f"{root} holds no {self.name}; {self._wanted(root)}.")
        lacking = ", ".join(missing[nearest])
        raise UserError(f"{nearest} lacks {lacking} of {self.name}; {self._wanted(root)}.")

    def places(self, root: Path) -> list[str]:
        """Paths below `root` that the official layout has."""
        return [str(root / self.folders[0] / where[0]) for where in self.parts.values()]

    def _wanted(self, root: Path) -> str:
        return (
            f"official layout: {', '.join(self.places(root))}; image folders: "
            f"{folders.LAYOUT.format(root)}; 'python -m classification.datasets fetch {self.name}' "
            "says where the files are"
        )

    def _find(self, folder: Path) -> tuple[dict[str, Path], list[str]]:
        """Parts -> paths, and the paths of parts that are not there."""
        found, missing = {}, []
        for part, places in self.parts.items():
            there = [folder / place for place in places if (folder / place).exists()]
            if there:
                found[part] = there[0]
            else:
                missing.append(places[0])
        return found, missing

    def _check(self, folder: Path, pairs: list[tuple[str, int]], classes: int) -> None:
        if not pairs:
            raise UserError(f"{folder} lists no images of {self.name}; fetch it again.")
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError("it lists an image twice")
        if out := [name for name in names if name[:1] == "/" or ".." in name.split("/")]:
            raise ValueError(f"'{out[0]}' leads out of its folder")
        if not 0 <= pairs[0][1] <= pairs[-1][1] < classes:
            raise ValueError(f"labels {pairs[0][1]} to {pairs[-1][1]} of {classes} classes")

    def _present(self, images: Path, pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """The pairs whose image exists; a folder is listed once, which is faster than asking."""
        parents = {os.path.dirname(name) for name, _ in pairs}
        there = {parent: _entries(images / parent) for parent in parents}
        gone = {
            name for name, _ in pairs if os.path.basename(name) not in there[os.path.dirname(name)]
        }
        if not gone:
            return pairs
        if self.partial and len(gone) < len(pairs):
            return [pair for pair in pairs if pair[0] not in gone]
        some = ", ".join(sorted(gone)[:3]) + (", ..." if len(gone) > 3 else "")
        raise UserError(
            f"{images} lacks {len(gone)} of {len(pairs)} listed images of {self.name}: {some}; "
            "unpack or fetch it again."
        )


def _entries(folder: Path) -> set[str]:
    # Not Path.is_dir, which raises for a name that no disk takes.
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


aircraft = Official(
    "aircraft",
    ("fgvc-aircraft-2013b",),
    indexes.aircraft,
    {
        "images": ("data/images",),
        "classes": ("data/variants.txt",),
        "train": ("data/images_variant_trainval.txt",),
        "test": ("data/images_variant_test.txt",),
    },
)

birdsnap = Official(
    "birdsnap",
    ("birdsnap",),
    indexes.birdsnap,
    {
        "images": ("download/images", "images"),
        "classes": ("species.txt",),
        "all": ("images.txt",),
        "test": ("test_images.txt",),
    },
    partial=True,
)

caltech101 = Official(
    "caltech101",
    ("caltech101", "caltech-101"),
    indexes.caltech101,
    {"images": ("101_ObjectCategories",)},
)

caltech256 = Official(
    "caltech256", ("caltech256",), indexes.caltech256, {"images": ("256_ObjectCategories",)}
)

cars = Official(
    "cars",
    ("stanford_cars",),
    indexes.cars,
    {
        "train images": ("cars_train",),
        "test images": ("cars_test",),
        "classes": ("devkit/cars_meta.mat",),
        "train": ("devkit/cars_train_annos.mat", "cars_train_annos.mat"),
        "test": ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
    },
)

dtd = Official(
    "dtd",
    ("dtd/dtd", "dtd"),
    indexes.dtd,
    {
        "images": ("images",),
        "train": ("labels/train1.txt",),
        "val": ("labels/val1.txt",),
        "test": ("labels/test1.txt",),
    },
)

flowers = Official(
    "flowers",
    ("flowers-102",),
    indexes.flowers,
    {"images": ("jpg",), "labels": ("imagelabels.mat",), "splits": ("setid.mat",)},
)

food = Official(
    "food",
    ("food-101",),
    indexes.food,
    {"images": ("images",), "train": ("meta/train.json",), "test": ("meta/test.json",)},
)

pets = Official(
    "pets",
    ("oxford-iiit-pet",),
    indexes.pets,
    {
        "images": ("images",),
        "train": ("annotations/trainval.txt",),
        "test": ("annotations/test.txt",),
    },
)

_PARTITIONS = ("", "Partitions/", "splits_01/", "../", "../Partitions/", "../splits_01/")
sun397 = Official(
    "sun397",
    ("SUN397",),
    indexes.sun397,
    {
        "images": ("a",),  # of a/ to z/
        "classes": tuple(f"{folder}ClassName.txt" for folder in _PARTITIONS),
        "train": tuple(f"{folder}Training_01.txt" for folder in _PARTITIONS),
        "test": tuple(f"{folder}Testing_01.txt" for folder in _PARTITIONS),
    },
)
