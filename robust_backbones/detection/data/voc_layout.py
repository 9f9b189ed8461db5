"""Find annotations, images and splits in a folder of VOC's XML files.

LabelImg and many public datasets use VOC's XML files, but other folder names and no splits.
Such a folder is split at random, in the same way each time.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robust_backbones.core.dataset_forms import RANDOM_SPLITS, VOC_LAYOUT
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import read_text
from robust_backbones.core.image_formats import FORMATS
from robust_backbones.detection.data.annotations import Problem, inside

SUFFIXES = tuple(case for suffix in FORMATS for case in (suffix, suffix.upper()))
SEED, FRACTION = 0, 0.8  # seed of the random split, and fraction of the images in 'train'

# A line of VOC's files for single classes: the image, and whether it shows the class.
_FLAGGED = re.compile(r"(.*\S)\s+(-1|0|1)")


@dataclass(frozen=True)
class Layout:
    """Folders of a dataset with VOC's XML files.

    Attributes:
        root: folder of the dataset.
        annotations: folder of the XML files.
        images: folder of the images.
        splits: folder of the split files, `<split>.txt`; None without such files.
    """

    root: Path
    annotations: Path
    images: Path
    splits: Path | None

    def xml(self, name: str) -> Path:
        """Return the annotation file of an image."""
        return self.annotations / f"{name}.xml"

    def names(self) -> list[str]:
        """Return the names of all annotated images that belong to any split, sorted."""
        if self.splits is None:
            return sorted(_stems(self.annotations, {".xml"}))
        files = sorted(self.splits.glob("*.txt"))
        listed = {name for file in files for name in _lines(self, file)}
        return sorted(name for name in listed if self.xml(name).is_file())


@dataclass(frozen=True)
class Split:
    """The images of a split.

    Attributes:
        names: names of the images, without suffix.
        source: split file, or folder of the XML files, for error messages.
        rule: how the images were chosen; empty if a file lists them.
        problems: images that are listed twice, and images without annotations.
    """

    names: list[str]
    source: Path
    rule: str
    problems: list[Problem]


def find_layout(root: Path) -> Layout:
    """Find the folders of a dataset.

    VOC's folder names are preferred, ignoring case. Otherwise, the only folder with XML files and
    the only folder with images are chosen, which may be `root` itself.

    Raises:
        UserError: `root` is not a folder, or the choice is ambiguous, or there are no XML files.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Give a folder with {VOC_LAYOUT}.")
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    folders = {name: path for name, path in folders.items() if not name.startswith(".")}
    sets = folders.get("imagesets")
    main = sets and next((path for path in sets.iterdir() if path.name.lower() == "main"), sets)
    splits = main if main and any(main.glob("*.txt")) else None
    parts = [root, *folders.values()]
    annotations = _named(parts, {".xml"}, ["annotations"]) or _only(parts, {".xml"})
    if annotations is None:
        raise UserError(_not_found(root, parts))
    images = _named(parts, SUFFIXES, ["jpegimages", "images"])
    if images is None:
        images = annotations if any(_stems(annotations, SUFFIXES)) else _only(parts, SUFFIXES)
    return Layout(root, annotations, images or root / "JPEGImages", splits)


def _named(parts: list[Path], suffixes: Collection[str], names: list[str]) -> Path | None:
    """Return the first subfolder with one of the names that has files of these suffixes."""
    found = (path for name in names for path in parts[1:] if path.name.lower() == name)
    return next((path for path in found if any(_stems(path, suffixes))), None)


def _only(parts: list[Path], suffixes: Collection[str]) -> Path | None:
    """Return the folder that has files of these suffixes; None if there is no such folder.

    Raises:
        UserError: several folders have such files.
    """
    full = [path for path in parts if any(_stems(path, suffixes))]
    if len(full) > 1:
        kind = "XML files" if ".xml" in suffixes else "images"
        found = ", ".join("itself" if path == parts[0] else f"{path.name}/" for path in full)
        raise UserError(
            f"{parts[0]} has {kind} in several folders: {found}. Give one folder with XML files "
            f"and images as ROOT. VOC's layout is {VOC_LAYOUT}."
        )
    return full[0] if full else None


def _not_found(root: Path, parts: list[Path]) -> str:
    """Describe a folder without XML files, for an error message."""
    below = [path for part in parts[1:] for path in sorted(part.iterdir()) if path.is_dir()]
    if deeper := [path for path in below if any(_stems(path, {".xml"}))]:
        return f"{root} has no XML files, but {deeper[0]} has. Give {deeper[0].parent} as ROOT."
    held = ", ".join(f"{path.name}/" for path in parts[1:9]) or "no folders"
    return (
        f"{root} has no XML files. It contains {held}. VOC's layout is {VOC_LAYOUT}. Give a folder "
        "with XML files, and images in the same folder or in another one."
    )


def read_split(layout: Layout, split: str) -> Split:
    """Read a split file, or split the images at random if there are no split files.

    The random split depends only on the sorted names of the XML files. 'train' and 'val' are
    disjoint, and 'all' is their union.

    Raises:
        UserError: the split does not exist, or is not a list of names.
    """
    if layout.splits is None:
        return _random_split(layout, split)
    file = layout.splits / f"{split}.txt"
    if not file.is_file():
        known = sorted((path.stem for path in layout.splits.glob("*.txt")), key=lambda s: "_" in s)
        more = f" and {len(known) - 8} more" if known[8:] else ""
        raise UserError(
            f"split '{split}' does not exist in {layout.splits}. Choose from "
            f"{', '.join(known[:8])}{more}."
        )
    names = list(_lines(layout, file))
    problems = [
        Problem("duplicate id", "", f"{name} is listed twice in {file}")
        for name, count in sorted(Counter(names).items())
        if count > 1
    ]
    return Split(list(dict.fromkeys(names)), file, "", problems)


def _lines(layout: Layout, file: Path) -> Iterator[str]:
    """Yield the names in a split file. Names may contain spaces.

    Raises:
        UserError: the file cannot be read, or names a file in another folder.
    """
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
        for line in filter(None, lines):
            flagged = _FLAGGED.fullmatch(line)
            name = flagged[1] if flagged and not layout.xml(line).is_file() else line
            inside(layout.root, name)
            yield name
    except OSError as error:
        raise UserError(f"{file}: the file cannot be read ({error.strerror}).") from None
    except ValueError as error:  # includes invalid encodings
        raise UserError(f"{file} is not a list of names ({error}).") from None


def _random_split(layout: Layout, split: str) -> Split:
    names = layout.names()
    if split not in RANDOM_SPLITS:
        raise UserError(
            f"split '{split}' does not exist: {layout.root} has no ImageSets/Main/{split}.txt. "
            f"Choose from {', '.join(RANDOM_SPLITS)}, or list the image names in this file. "
            f"'train' is a random choice of {FRACTION:.0%} of the images, 'val' are the others."
        )
    pictures = _stems(layout.images, SUFFIXES)
    if not pictures:
        raise UserError(
            f"{layout.root} has XML files, but no images. Give a folder that contains both, in the "
            "same folder or in two."
        )
    order = np.random.default_rng(SEED).permutation(len(names)).tolist()
    count = round(FRACTION * len(names))
    chosen = sorted({"train": order[:count], "val": order[count:], "all": order}[split])
    if not chosen:
        raise UserError(
            f"split '{split}' has no images: {layout.root} has only {len(names)} with an XML file. "
            "Add images, or choose split 'all'."
        )
    unused = sorted(pictures - set(names))
    problems = [Problem("not annotated", name, f"{layout.xml(name)} is missing") for name in unused]
    rule = f"no ImageSets: {len(chosen)} of {len(names)} images are '{split}'"
    if split != "all":
        rule += f" by a random split with seed {SEED}"
    if unused:
        rule += f"; not used: {counted(len(unused), 'image', 'images')} without an XML file"
    return Split([names[index] for index in chosen], layout.annotations, rule, problems)


def _stems(folder: Path, suffixes: Collection[str]) -> set[str]:
    """Return the names of the files in a folder that have one of the suffixes."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        parts = (os.path.splitext(entry.name) for entry in entries)
        return {stem for stem, suffix in parts if suffix in suffixes and not stem.startswith(".")}
