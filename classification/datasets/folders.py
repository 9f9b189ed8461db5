"""Find the images of an image folder: its splits, its classes, and the entries to ignore."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from classification.datasets.split_names import (
    SPLIT_NAMES,
    choose_splits,
    has_splits,
    is_junk,
    split_of,
)
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.image_formats import describe_skipped, has_image_suffix

TABLES = (".csv", ".tsv")  # file extensions of tables of names and labels; see `label_tables`
LAYOUT = "train/<class>/<image> and test/<class>/<image> (or val instead of test) in {0}"
TEST_PERCENT, SPLIT_SEED = 20, 0  # test images of each class if the data has no test split
MAX_WRAPPERS = 3  # nested folders without other entries around the data, as in archives
SHOWN = 5  # maximum number of names in an error message


@dataclass(frozen=True)
class FolderLayout:
    """The folders of an image folder.

    Attributes:
        root: folder that contains the split folders or the class folders. It may be below the
            folder that the user gave.
        splits: folder name of the splits `train` and `test`; empty if `root` contains the class
            folders.
        unused: other folders in `root` that contain no split.
        unused_val: folder of the validation split, which is not used because there is a test split.
    """

    root: Path
    splits: dict[str, str]
    unused: tuple[Path, ...] = ()
    unused_val: Path | None = None

    @property
    def kind(self) -> str:
        """Name of the layout."""
        return "folders" if self.splits else "class folders without splits"

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about decisions that change the data, to print once."""
        if not self.splits:
            return (division_note(f"{self.root} has no test folder"),)
        if self.unused_val:
            test = self.root / self.splits["test"]
            return (f"{test} is the test split, so {self.unused_val} is not used",)
        return ()


@dataclass(frozen=True)
class ImageList:
    """The images of a split.

    Attributes:
        folder: folder of the images.
        names: path of each image in the folder.
        labels: label of each image, from 0.
        class_names: one name per class.
        origin: folder of the split, or description of how it was selected.
        notes: sentences about decisions that change the data.
        skipped: files among the images that are not read.
    """

    folder: Path
    names: list[str]
    labels: list[int]
    class_names: list[str]
    origin: str = ""
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def skipped_note(self) -> tuple[str, ...]:
        """Sentence that counts the skipped files by file extension, if there are any."""
        if not self.skipped:
            return ()
        files = counted(len(self.skipped), "file is", "files are")
        return (f"{self.folder}: {files} skipped: {describe_skipped(self.skipped)}",)


def is_image(name: str) -> bool:
    """Return whether a file name has an image extension and is not junk, unlike `._x.jpg`."""
    base = name.rsplit("/", 1)[-1]
    return has_image_suffix(base) and not is_junk(base)


def find_layout(root: str | Path) -> FolderLayout:
    """Recognize the layout of an image folder from the names of its folders.

    Raises:
        UserError: the folder does not exist, or has a different layout.
    """
    root = below_wrappers(Path(root))
    folders, images = contents(root)
    splits, val = choose_splits(folders, root)
    if splits:
        unused = tuple(root / name for name in folders if not split_of(name))
        return FolderLayout(root, splits, unused, root / val if val else None)
    if len(folders) > 1 and any(contents(root / name)[1] for name in folders):
        return FolderLayout(root, {})
    fix = "Check the path."
    if datasets := [root / name for name in folders if has_splits(root / name)]:
        fix = f"Pass one dataset, such as {datasets[0]}."
    elif len(folders) == 1 and contents(root / folders[0])[1]:
        fix = "One class is not enough. Add a folder for each other class."
    elif folders:
        fix = "Rename the folders of the training and test images to 'train' and 'test'."
    elif images:
        fix = "Move the images into one folder per class."
    raise UserError(
        f"{root} {describe(root)}. Expected {LAYOUT.format(root)}, or <class>/<image> for the "
        f"dataset 'folder'. {fix}{_hint_table(root)}"
    )


def below_wrappers(root: Path) -> Path:
    """Return the folder with the data: `root`, or the folder in it if that is all it contains.

    Archives often add such a folder, as in `pets/pets/train/`.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {reason}. Give a folder with {LAYOUT.removesuffix(' in {0}')}.")
    for _ in range(MAX_WRAPPERS):
        folders, images = contents(root)
        wrapper = len(folders) == 1 and not images and not split_of(folders[0])
        if not wrapper or not contents(root / folders[0])[0]:
            break
        root = root / folders[0]
    return root


def list_tree(split: str, root: str | Path, divide: bool = False) -> ImageList:
    """List the images of a split, sorted by class and name.

    Args:
        split: `train` or `test`.
        root: folder of the dataset.
        divide: whether class folders without splits are divided into training and test images.

    Raises:
        UserError: the folder has a different layout, a class has no images, or the splits have
            different classes.
    """
    layout = find_layout(root)
    if not layout.splits:
        if not divide:
            raise UserError(
                f"{layout.root} has class folders, but no split folders. Expected "
                f"{LAYOUT.format(layout.root)}. Use the dataset 'folder' to split the images."
            )
        found = list_classes(layout.root, direct=True)
        return divided(split, found, layout.notes + found.skipped_note)
    folder = split_folder(layout, split)
    for other in layout.splits.values():  # the other split may be missing
        _check_same_classes(folder, _unwrapped(layout.root / other))
    found = list_classes(folder)
    origin = f"{folder.relative_to(layout.root).as_posix()}/"
    return replace(found, origin=origin, notes=layout.notes + found.skipped_note)


def list_classes(folder: Path, direct: bool = False) -> ImageList:
    """List the images of a folder that contains class folders, sorted by class and name.

    Args:
        folder: folder with the class folders.
        direct: whether each class folder must contain an image itself, not only in subfolders.

    Raises:
        UserError: the folder has a different layout, or a class has no images.
    """
    names: list[str] = []
    labels: list[int] = []
    skipped: list[str] = []
    classes = _classes(folder)
    for label, name in enumerate(classes):
        files = sorted(files_below(folder, name))
        found = [file for file in files if has_image_suffix(file)]
        skipped += [file for file in files if not has_image_suffix(file)]
        if direct and all(image.count("/") > 1 for image in found):
            inner, _ = contents(folder / name)
            raise UserError(
                f"{folder / name}: this class folder has no images, only the folders "
                f"{_quoted(inner)}. Move its images into it, or remove it. For data with splits, "
                f"the folders must be {LAYOUT.format(folder)}."
                if inner
                else _no_images(folder / name, files)
            )
        if not found:
            raise UserError(_no_images(folder / name, files))
        names += found
        labels += [label] * len(found)
    return ImageList(folder, names, labels, classes, skipped=tuple(skipped))


def split_folder(layout: FolderLayout, split: str) -> Path:
    """Return the folder of a split.

    Raises:
        UserError: there is no such folder.
    """
    if split in layout.splits:
        return _unwrapped(layout.root / layout.splits[split])
    root, (other,) = layout.root, layout.splits.values()
    allowed = [*SPLIT_NAMES["test"], *SPLIT_NAMES["val"]] if split == "test" else ["train"]
    fix = f"Rename the folder of the {split} images to '{allowed[0]}'"
    if split == "test":
        fix += (
            f", or give {root / other} as the dataset: {TEST_PERCENT} % of its images become test "
            "images"
        )
    raise UserError(
        f"{root} has no folder {' or '.join(map(repr, allowed))}. It {describe(root)}. {fix}."
    )


def divided(split: str, images: ImageList, notes: tuple[str, ...]) -> ImageList:
    """Select the images of a split from images that have none.

    `TEST_PERCENT` % of each class, and at least one image, are test images. The selection depends
    on the names only. Therefore it is the same on every machine, and a new image moves at most one
    other image to another split.

    Raises:
        UserError: a class has only one image.
    """
    members: dict[int, list[int]] = {}
    for i, label in enumerate(images.labels):
        members.setdefault(label, []).append(i)
    chosen: set[int] = set()
    for label, every in members.items():
        if len(every) < 2:
            raise UserError(
                f"{images.folder}: class '{images.class_names[label]}' has one image. Training "
                "and test need at least one each. Add images, or remove the class."
            )
        every.sort(
            key=lambda i: hashlib.sha256(f"{SPLIT_SEED}\0{images.names[i]}".encode()).digest()
        )
        chosen.update(every[: max(1, round(len(every) * TEST_PERCENT / 100))])
    if split == "train":
        chosen = set(range(len(images.names))) - chosen
    kept = sorted(chosen)
    percent = TEST_PERCENT if split == "test" else 100 - TEST_PERCENT
    return ImageList(
        images.folder,
        [images.names[i] for i in kept],
        [images.labels[i] for i in kept],
        images.class_names,
        f"{percent} % of each class, seed {SPLIT_SEED}",
        notes,
    )


def division_note(reason: str) -> str:
    """Return the sentence to print when images are divided."""
    return f"{reason}: {TEST_PERCENT} % of each class, seed {SPLIT_SEED}, are test images"


def images_below(folder: Path, name: str = "") -> Iterator[str]:
    """Yield the images in `folder/name` and its subfolders, relative to `folder`."""
    return filter(has_image_suffix, files_below(folder, name))


def files_below(folder: Path, name: str = "") -> Iterator[str]:
    """Yield all files in `folder/name` and its subfolders except junk, relative to `folder`."""
    for path, folders, files in os.walk(folder / name, followlinks=True):
        folders[:] = [name for name in folders if not is_junk(name)]
        relative = Path(path).relative_to(folder).as_posix()
        start = "" if relative == "." else f"{relative}/"
        yield from (f"{start}{file}" for file in files if not is_junk(file))


def skipped_below(layout: FolderLayout) -> Iterator[Path]:
    """Yield the files in class folders that are not read."""
    folders = [split_folder(layout, split) for split in layout.splits] or [layout.root]
    for folder in folders:
        for name in contents(folder)[0]:
            files = sorted(files_below(folder, name))
            yield from (folder / file for file in files if not has_image_suffix(file))


def junk_below(root: Path) -> Iterator[str]:
    """Yield the ignored files and folders below `root`."""
    for path, folders, files in os.walk(root, followlinks=True):
        yield from (os.path.join(path, name) for name in (*folders, *files) if is_junk(name))
        folders[:] = [name for name in folders if not is_junk(name)]


def contents(folder: Path) -> tuple[list[str], int]:
    """Return the sorted names of the folders in a folder, and the number of images."""
    names, images = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            if entry.is_dir():
                names.append(entry.name)
            else:
                images += is_image(entry.name)
    return sorted(names), images


def _unwrapped(folder: Path) -> Path:
    """Return the folder, or its only folder if that repeats the name, as in `train/train/`."""
    folders, images = contents(folder)
    if len(folders) == 1 and not images and folders[0].lower() == folder.name.lower():
        return folder / folders[0]
    return folder


def _classes(folder: Path) -> list[str]:
    """Return the sorted names of the class folders."""
    classes, loose = contents(folder)
    if loose:
        is_class = (
            f" If '{folder.name}' is a class, rename it, because the name means a split."
            if split_of(folder.name) and not classes
            else ""
        )
        raise UserError(
            f"{folder}: {counted(loose, 'image is', 'images are')} not in class folders. Move all "
            f"images to {folder}/<class>/, with the same class names in each split.{is_class}"
            f"{_hint_table(folder.parent)}"
        )
    if not classes:
        raise UserError(f"{folder} has no class folders. Expected {LAYOUT.format(folder.parent)}.")
    if len(classes) == 1:
        raise UserError(
            f"{folder} has only one class folder, '{classes[0]}'. Classification needs two or more."
        )
    return classes


def _check_same_classes(folder: Path, other: Path) -> None:
    """Check that the splits have the same class names. Labels are indices of the sorted names."""
    if folder == other:
        return
    classes, others = set(_classes(folder)), set(_classes(other))
    if classes != others:
        raise UserError(
            f"{folder} and {other} have different classes: only the first has "
            f"{_quoted(classes - others)}, only the second has {_quoted(others - classes)}. Create "
            "the same class folders in both."
        )


def _no_images(folder: Path, files: list[str]) -> str:
    only = f", only {describe_skipped(files)}" if files else ""
    return f"{folder}: this class folder has no images{only}. Add some, or remove it."


def describe(folder: Path) -> str:
    """Describe the contents of a folder, as the predicate of a sentence."""
    folders, images = contents(folder)
    parts = [f"the folders {_quoted(folders)}"] if folders else []
    parts += [counted(images, "image", "images")] if images else []
    return f"has {' and '.join(parts)}" if parts else "has no folders and no images"


def _hint_table(root: Path) -> str:
    """Return a sentence that names a table of labels in the folder, or an empty string."""
    tables = [path for path in root.iterdir() if path.suffix.lower() in TABLES]
    # Data of competitions have a table of each split, and often no labels in test.csv.
    order = {"train": 0, None: 1}
    tables.sort(key=lambda path: (order.get(split_of(path.stem), 2), path.name))
    return (
        f" If {tables[0].name} lists names and labels, pass --data {tables[0]}." if tables else ""
    )


def _quoted(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more or "none"
