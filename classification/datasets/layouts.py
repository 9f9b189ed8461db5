"""Read the datasets of the transfer tasks in their official layouts, or as image folders.

Calling an `OfficialLayout` with `(split, root)` returns images, labels and class names. Images are
sorted by label and then by name. Labels equal torchvision's.

Each index function takes the paths of the layout's parts and a split, `train` or `test`. It returns
an `Index`. It may raise ValueError, KeyError and similar errors for invalid contents.
`OfficialLayout` converts these errors to a `UserError` that names the dataset.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from classification.datasets import folders
from classification.datasets.image_files import ImageFiles, SplitContents, read_tree
from classification.datasets.matlab_files import read_matlab
from classification.datasets.split_names import has_splits
from robust_backbones.core.errors import UserError

BACKGROUND = "BACKGROUND_Google"  # a folder in Caltech-101 that is not a class


class Index(NamedTuple):
    """The images of a split.

    Attributes:
        folder: folder of the images.
        images: for each image, a pair of its path in the folder and its label, from 0.
        class_names: one name per class.
    """

    folder: Path
    images: Iterable[tuple[str, int]]
    class_names: Sequence[str]


@dataclass(frozen=True)
class OfficialLayout:
    """The official layout of one dataset.

    Attributes:
        name: name of the dataset.
        folders: possible subfolders of the root with the data, named as in the official archive
            and in torchvision.
        index: function from `(parts, split)` to `Index`.
        parts: possible paths of each file or folder that `index` reads, by the name of the part.
        partial: whether listed images may be missing, because they are no longer available.
    """

    name: str
    folders: tuple[str, ...]
    index: Callable[[dict[str, Path], str], Index]
    parts: dict[str, tuple[str, ...]]
    partial: bool = False

    def __call__(self, split: str, root: str | Path) -> SplitContents:
        """List the images of a split without opening them.

        Raises:
            UserError: the data has a different layout, an index file is damaged, or images are
                missing.
        """
        kind, folder = self.detect(root)
        if kind == "folders":
            return read_tree(split, folder)
        try:
            index = self.index(self._find_parts(folder)[0], split)
            pairs = sorted(index.images, key=lambda pair: (pair[1], pair[0]))
            self._check(folder, pairs, len(index.class_names))
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
                f"{folder}: the {split} index of {self.name} is damaged ({error!r}). Fetch it "
                "again."
            ) from None
        pairs = self._existing(index.folder, pairs)
        files = ImageFiles.of(index.folder, [name for name, _ in pairs])
        labels = torch.tensor([label for _, label in pairs])
        return SplitContents(files, labels, tuple(index.class_names))

    def detect(self, root: str | Path) -> tuple[str, Path]:
        """Return the layout of `root`, `official` or `folders`, and the folder with the data.

        Raises:
            UserError: the data has a different layout, or is incomplete.
        """
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root} is not a folder. {self._expected(root)}")
        missing = {}
        inner = folders.below_wrappers(root)
        tops = [root] if inner == root else [root, inner]
        for folder in [top / name for top in tops for name in (*self.folders, ".")]:
            missing[folder] = self._find_parts(folder)[1]
            if not missing[folder]:
                return "official", folder
        if has_splits(inner):
            return "folders", inner
        nearest = min(missing, key=lambda folder: len(missing[folder]))
        if len(missing[nearest]) == len(self.parts):
            raise UserError(
                f"{root} does not contain {self.name}: it {folders.describe(root)}. "
                f"{self._expected(root)}"
            )
        raise UserError(
            f"{nearest} lacks {', '.join(missing[nearest])} of {self.name}. {self._expected(root)}"
        )

    def paths(self, root: Path) -> list[str]:
        """Return the paths of the official layout below `root`."""
        return [str(root / self.folders[0] / paths[0]) for paths in self.parts.values()]

    def _expected(self, root: Path) -> str:
        return (
            f"Expected the official layout ({', '.join(self.paths(root))}) or image folders "
            f"({folders.LAYOUT.format(root)}). For downloads, run: "
            f"robust-backbones datasets fetch {self.name}"
        )

    def _find_parts(self, folder: Path) -> tuple[dict[str, Path], list[str]]:
        """Return the existing path of each part by its name, and the paths of missing parts."""
        found, missing = {}, []
        for part, paths in self.parts.items():
            existing = [folder / path for path in paths if (folder / path).exists()]
            if existing:
                found[part] = existing[0]
            else:
                missing.append(paths[0])
        return found, missing

    def _check(self, folder: Path, pairs: list[tuple[str, int]], classes: int) -> None:
        if not pairs:
            raise UserError(f"{folder}: the index of {self.name} lists no images. Fetch it again.")
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError("it lists an image twice")
        if outside := [name for name in names if name[:1] == "/" or ".." in name.split("/")]:
            raise ValueError(f"'{outside[0]}' leads out of its folder")
        if not 0 <= pairs[0][1] <= pairs[-1][1] < classes:
            raise ValueError(f"labels {pairs[0][1]} to {pairs[-1][1]} for {classes} classes")

    def _existing(self, images: Path, pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return the pairs whose image exists.

        Listing the folders is faster than checking each file.
        """
        parents = {os.path.dirname(name) for name, _ in pairs}
        entries = {parent: _entries(images / parent) for parent in parents}
        missing = {
            name
            for name, _ in pairs
            if os.path.basename(name) not in entries[os.path.dirname(name)]
        }
        if not missing:
            return pairs
        if self.partial and len(missing) < len(pairs):
            return [pair for pair in pairs if pair[0] not in missing]
        some = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{images} lacks {len(missing)} of {len(pairs)} listed images of {self.name}: {some}. "
            "Unpack it or fetch it again."
        )


def _entries(folder: Path) -> set[str]:
    # Path.is_dir raises an error if a name is too long. os.path.isdir returns False.
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def _aircraft(parts: dict[str, Path], split: str) -> Index:
    """Read lines `<number> <variant>`. The training split is the official trainval list."""
    classes = _lines(parts["classes"])
    label = {name: i for i, name in enumerate(classes)}
    pairs = (line.split(" ", 1) for line in _lines(parts[split]))
    return Index(
        parts["images"], [(f"{number}.jpg", label[name]) for number, name in pairs], classes
    )


def _birdsnap(parts: dict[str, Path], split: str) -> Index:
    """Read tab-separated tables. All images outside the test table are training images."""
    classes = {row["id"]: row["dir"] for row in _table(parts["classes"])}
    order = sorted(classes, key=int)
    label = {number: i for i, number in enumerate(order)}
    test = {row["path"] for row in _table(parts["test"])}
    pairs = [
        (row["path"], label[row["species_id"]])
        for row in _table(parts["all"])
        if (row["path"] in test) == (split == "test")
    ]
    return Index(parts["images"], pairs, [classes[number] for number in order])


def _caltech101(parts: dict[str, Path], split: str) -> Index:
    """Train on the first 30 images of each class, by the number in the file name."""
    return _first_images(parts["images"], split, 30, r"image_(\d+)\.jpg")


def _caltech256(parts: dict[str, Path], split: str) -> Index:
    """Train on the first 60 images of each class. Ignore stray files such as RENAME2."""
    return _first_images(parts["images"], split, 60, r"\d+_(\d+)\.jpg")


def _first_images(images: Path, split: str, count: int, pattern: str) -> Index:
    classes = [name for name in folders.contents(images)[0] if name != BACKGROUND]
    part = slice(None, count) if split == "train" else slice(count, None)
    pairs = []
    for label, name in enumerate(classes):
        matches = [re.fullmatch(pattern, entry.name) for entry in (images / name).iterdir()]
        numbered = sorted((int(match[1]), match[0]) for match in matches if match)
        pairs += [(f"{name}/{file}", label) for _, file in numbered[part]]
    return Index(images, pairs, classes)


def _cars(parts: dict[str, Path], split: str) -> Index:
    """Read MATLAB structures, whose labels start at 1."""
    classes = read_matlab(parts["classes"])["class_names"].tolist()
    rows = read_matlab(parts[split])["annotations"]
    pairs = [(str(row["fname"]), int(row["class"]) - 1) for row in rows]
    images = parts[f"{split} images"]
    nested = images / images.name  # Kaggle's archive has this extra folder
    return Index(nested if nested.is_dir() else images, pairs, classes)


def _dtd(parts: dict[str, Path], split: str) -> Index:
    """Read lines `<class>/<image>`. The training split consists of train1 and val1."""
    lists = {"train": ("train", "val"), "test": ("test",)}[split]
    names = [line for part in lists for line in _lines(parts[part])]
    classes = sorted({name.split("/")[0] for name in names})
    pairs = [(name, classes.index(name.split("/")[0])) for name in names]
    return Index(parts["images"], pairs, classes)


def _flowers(parts: dict[str, Path], split: str) -> Index:
    """Read MATLAB arrays of image numbers and labels, which start at 1. Classes have no names."""
    splits, labels = (read_matlab(parts["splits"]), read_matlab(parts["labels"])["labels"])
    keys = {"train": ("trnid", "valid"), "test": ("tstid",)}[split]
    numbers = [int(number) for key in keys for number in splits[key]]
    if min(numbers) < 1:
        raise ValueError("image 0, but numbers start at 1")
    pairs = [(f"image_{number:05d}.jpg", int(labels[number - 1]) - 1) for number in numbers]
    classes = [f"{number:03d}" for number in range(1, int(labels.max()) + 1)]
    return Index(parts["images"], pairs, classes)


def _food(parts: dict[str, Path], split: str) -> Index:
    """Read a JSON file that maps each class to its image names without extension."""
    listed = json.loads(parts[split].read_text(encoding="utf-8"))
    classes = sorted(listed)
    pairs = [(f"{name}.jpg", i) for i, key in enumerate(classes) for name in listed[key]]
    return Index(parts["images"], pairs, classes)


def _pets(parts: dict[str, Path], split: str) -> Index:
    """Read lines `<class>_<number> <label> <species> <breed>`. Labels start at 1."""
    rows = [line.split() for line in _lines(parts[split])]
    pairs = [(f"{row[0]}.jpg", int(row[1]) - 1) for row in rows]
    names = {int(row[1]) - 1: row[0].rsplit("_", 1)[0] for row in rows}
    return Index(parts["images"], pairs, [names[label] for label in range(len(names))])


def _sun397(parts: dict[str, Path], split: str) -> Index:
    """Read lines such as `/a/abbey/sun_....jpg`. The folder is the class."""
    classes = _lines(parts["classes"])
    label = {name: i for i, name in enumerate(classes)}
    pairs = [(name[1:], label[name.rsplit("/", 1)[0]]) for name in _lines(parts[split])]
    # Class names start after /a/, as in torchvision.
    return Index(parts["images"].parent, pairs, [name[3:] for name in classes])


def _lines(path: Path) -> list[str]:
    stripped = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if line]


def _table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a tab-separated table whose first line has the column names."""
    head, *rows = (line.split("\t") for line in _lines(path))
    return [dict(zip(head, row, strict=False)) for row in rows]


_PARTITIONS = ("", "Partitions/", "splits_01/", "../", "../Partitions/", "../splits_01/")
_LAYOUTS = (
    OfficialLayout(
        "aircraft",
        ("fgvc-aircraft-2013b",),
        _aircraft,
        {
            "images": ("data/images",),
            "classes": ("data/variants.txt",),
            "train": ("data/images_variant_trainval.txt",),
            "test": ("data/images_variant_test.txt",),
        },
    ),
    OfficialLayout(
        "birdsnap",
        ("birdsnap",),
        _birdsnap,
        {
            "images": ("download/images", "images"),
            "classes": ("species.txt",),
            "all": ("images.txt",),
            "test": ("test_images.txt",),
        },
        partial=True,
    ),
    OfficialLayout(
        "caltech101",
        ("caltech101", "caltech-101"),
        _caltech101,
        {"images": ("101_ObjectCategories",)},
    ),
    OfficialLayout(
        "caltech256", ("caltech256",), _caltech256, {"images": ("256_ObjectCategories",)}
    ),
    OfficialLayout(
        "cars",
        ("stanford_cars",),
        _cars,
        {
            "train images": ("cars_train",),
            "test images": ("cars_test",),
            "classes": ("devkit/cars_meta.mat",),
            "train": ("devkit/cars_train_annos.mat", "cars_train_annos.mat"),
            "test": ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
        },
    ),
    OfficialLayout(
        "dtd",
        ("dtd/dtd", "dtd"),
        _dtd,
        {
            "images": ("images",),
            "train": ("labels/train1.txt",),
            "val": ("labels/val1.txt",),
            "test": ("labels/test1.txt",),
        },
    ),
    OfficialLayout(
        "flowers",
        ("flowers-102",),
        _flowers,
        {"images": ("jpg",), "labels": ("imagelabels.mat",), "splits": ("setid.mat",)},
    ),
    OfficialLayout(
        "food",
        ("food-101",),
        _food,
        {"images": ("images",), "train": ("meta/train.json",), "test": ("meta/test.json",)},
    ),
    OfficialLayout(
        "pets",
        ("oxford-iiit-pet",),
        _pets,
        {
            "images": ("images",),
            "train": ("annotations/trainval.txt",),
            "test": ("annotations/test.txt",),
        },
    ),
    OfficialLayout(
        "sun397",
        ("SUN397",),
        _sun397,
        {
            "images": ("a",),  # the images are in the folders a/ to z/
            "classes": tuple(f"{folder}ClassName.txt" for folder in _PARTITIONS),
            "train": tuple(f"{folder}Training_01.txt" for folder in _PARTITIONS),
            "test": tuple(f"{folder}Testing_01.txt" for folder in _PARTITIONS),
        },
    ),
)
OFFICIAL = {layout.name: layout for layout in _LAYOUTS}
