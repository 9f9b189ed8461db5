"""The index files of the official layouts: which images train, which test, and their labels.

Each function takes the paths of `official.Official.parts` and the split, train or test, and gives
the folder of the images, pairs (path in it, label from 0) and the class names. What does not fit
raises the ValueError, KeyError, ... that Python has for it: the caller says which file it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from classification.datasets import matlab_files

# Files of a split: the folder of the images, (path in it, label) of each, names of the classes.
Listing = tuple[Path, Iterable[tuple[str, int]], Sequence[str]]

BACKGROUND = "BACKGROUND_Google"  # a folder of Caltech-101 that is no class


def aircraft(at: dict[str, Path], split: str) -> Listing:
    """`<number> <variant>` a line; training is the official trainval."""
    classes = _lines(at["classes"])
    label = {name: i for i, name in enumerate(classes)}
    pairs = (line.split(" ", 1) for line in _lines(at[split]))
    return at["images"], [(f"{number}.jpg", label[name]) for number, name in pairs], classes


def birdsnap(at: dict[str, Path], split: str) -> Listing:
    """Tables with tabs; the training images are those that the test table does not name."""
    classes = {row["id"]: row["dir"] for row in _table(at["classes"])}
    order = sorted(classes, key=int)
    label = {number: i for i, number in enumerate(order)}
    test = {row["path"] for row in _table(at["test"])}
    pairs = [
        (row["path"], label[row["species_id"]])
        for row in _table(at["all"])
        if (row["path"] in test) == (split == "test")
    ]
    return at["images"], pairs, [classes[number] for number in order]


def caltech101(at: dict[str, Path], split: str) -> Listing:
    """The first 30 images of each class train, by the number in their names."""
    return _first(at["images"], split, 30, r"image_(\d+)\.jpg")


def caltech256(at: dict[str, Path], split: str) -> Listing:
    """The first 60 images of each class train; stray files as RENAME2 are left out."""
    return _first(at["images"], split, 60, r"\d+_(\d+)\.jpg")


def _first(images: Path, split: str, count: int, pattern: str) -> Listing:
    folders = [entry.name for entry in images.iterdir() if entry.is_dir()]
    classes = sorted(name for name in folders if name != BACKGROUND and name[0] != ".")
    part = slice(None, count) if split == "train" else slice(count, None)
    pairs = []
    for label, name in enumerate(classes):
        matches = [re.fullmatch(pattern, entry.name) for entry in (images / name).iterdir()]
        numbered = sorted((int(match[1]), match[0]) for match in matches if match)
        pairs += [(f"{name}/{file}", label) for _, file in numbered[part]]
    return images, pairs, classes


def cars(at: dict[str, Path], split: str) -> Listing:
    """MATLAB structures; labels count from 1."""
    classes = matlab_files.read(at["classes"])["class_names"].tolist()
    rows = matlab_files.read(at[split])["annotations"]
    pairs = [(str(row["fname"]), int(row["class"]) - 1) for row in rows]
    images = at[f"{split} images"]
    nested = images / images.name  # so it comes from Kaggle
    return nested if nested.is_dir() else images, pairs, classes


def dtd(at: dict[str, Path], split: str) -> Listing:
    """`<class>/<image>` a line; training is train1 and val1."""
    parts = {"train": ("train", "val"), "test": ("test",)}[split]
    names = [line for part in parts for line in _lines(at[part])]
    classes = sorted({name.split("/")[0] for part in parts for name in _lines(at[part])})
    return at["images"], [(name, classes.index(name.split("/")[0])) for name in names], classes


def flowers(at: dict[str, Path], split: str) -> Listing:
    """MATLAB arrays of image numbers and labels, both from 1; the classes have only numbers."""
    splits, labels = matlab_files.read(at["splits"]), matlab_files.read(at["labels"])["labels"]
    keys = {"train": ("trnid", "valid"), "test": ("tstid",)}[split]
    numbers = [int(number) for key in keys for number in splits[key]]
    if min(numbers) < 1:
        raise ValueError("image 0: they count from 1")
    pairs = [(f"image_{number:05d}.jpg", int(labels[number - 1]) - 1) for number in numbers]
    return at["images"], pairs, [f"{number:03d}" for number in range(1, int(labels.max()) + 1)]


def food(at: dict[str, Path], split: str) -> Listing:
    """JSON: class -> names without ending."""
    listed = json.loads(at[split].read_text(encoding="utf-8"))
    classes = sorted(listed)
    pairs = [(f"{name}.jpg", i) for i, key in enumerate(classes) for name in listed[key]]
    return at["images"], pairs, classes


def pets(at: dict[str, Path], split: str) -> Listing:
    """`<class>_<number> <label> <species> <breed>` a line; labels count from 1."""
    rows = [line.split() for line in _lines(at[split])]
    pairs = [(f"{row[0]}.jpg", int(row[1]) - 1) for row in rows]
    names = {int(row[1]) - 1: row[0].rsplit("_", 1)[0] for row in rows}
    return at["images"], pairs, [names[label] for label in range(len(names))]


def sun397(at: dict[str, Path], split: str) -> Listing:
    """`/a/abbey/sun_....jpg` a line; the class is the folder."""
    classes = _lines(at["classes"])
    label = {name: i for i, name in enumerate(classes)}
    pairs = [(name[1:], label[name.rsplit("/", 1)[0]]) for name in _lines(at[split])]
    # The names go on without the /a/, as in the folders and in torchvision.
    return at["images"].parent, pairs, [name[3:] for name in classes]


def _lines(path: Path) -> list[str]:
    stripped = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if line]


def _table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with tabs whose first line names the columns."""
    head, *rows = (line.split("\t") for line in _lines(path))
    return [dict(zip(head, row, strict=False)) for row in rows]
