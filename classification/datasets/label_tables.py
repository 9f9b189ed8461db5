"""Read tables of image names and labels: CSV or TSV files whose first line names the columns."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from classification.datasets.folders import (
    TABLES,
    ImageList,
    divided,
    division_note,
    images_below,
    list_tree,
)
from classification.datasets.split_names import choose_splits
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import read_text
from robust_backbones.core.image_formats import FORMATS, describe_skipped, has_image_suffix

# Possible names of each column, in lower case and with _ for spaces and hyphens. Of several columns
# with file names, the first in this order is read, because the images of a wrong one are not found.
# Of the other columns, the table must have only one, or the first.
COLUMNS = {
    "filename": (
        "filename",
        "file_name",
        "file",
        "filepath",
        "filepaths",
        "file_path",
        "path",
        "image",
        "image_name",
        "image_path",
        "image_file",
        "image_id",
        "img",
        "id",
    ),
    "label": (
        "label",
        "labels",
        "class",
        "class_name",
        "category",
        "target",
        "breed",
        "species",
        "diagnosis",
    ),
    "split": ("split", "subset", "set", "data_set"),
}
SHOWN = 3  # maximum number of names in an error message


@dataclass(frozen=True)
class LabelTable:
    """A table of image names and labels.

    Attributes:
        path: path of the table.
        columns: name of the columns `filename`, `label` and `split` in the table. `split` is
            missing if the table has no such column.
        images: path of each image, relative to the folder of the table, in the order of the table.
        labels: label of each image, as in the table.
        splits: split of each image, as in the table; empty if there is no such column.
        unlisted: images in the folder that the table does not list.
    """

    path: Path
    columns: dict[str, str]
    images: list[str]
    labels: list[str]
    splits: list[str]
    unlisted: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Name of the layout, with the columns that are read."""
        names = [f"{name} from column '{column}'" for name, column in self.columns.items()]
        return f"table of labels ({', '.join(names)})"


def is_table(path: str | Path) -> bool:
    """Return whether a path has the file extension of a table of labels."""
    return str(path).lower().endswith(TABLES)


def list_images(split: str, root: str | Path, divide: bool = False) -> ImageList:
    """List the images of a split, sorted by class and name.

    Args:
        split: `train` or `test`.
        root: image folder as in `folders`, or path of a table.
        divide: whether images without splits are divided into training and test images. Tables are
            read only in this case.

    Raises:
        UserError: as for `folders.list_tree` and `list_table`.
    """
    return list_table(split, root) if divide and is_table(root) else list_tree(split, root, divide)


def list_table(split: str, path: str | Path) -> ImageList:
    """List the images of a split, sorted by class and name.

    A column `split` selects the images. Without it, `folders.divided` does.

    Args:
        split: `train` or `test`.
        path: path of the table. Its images are in the same folder, or in a folder next to it.

    Raises:
        UserError: the table or its images are incomplete or contradictory.
    """
    table = read_table(path)
    classes = sorted(set(table.labels), key=_class_order(table.labels))
    number = {name: label for label, name in enumerate(classes)}
    rows = sorted(
        (number[label], image) for image, label in zip(table.images, table.labels, strict=True)
    )
    images = ImageList(
        table.path.parent, [name for _, name in rows], [label for label, _ in rows], classes
    )
    if not table.splits:
        return divided(split, images, (division_note(f"{path} has no column 'split'"),))
    return _selected(split, table, images)


def read_table(path: str | Path) -> LabelTable:
    """Read a table and find its images.

    Raises:
        UserError: the file is not a table of names and labels; images are missing, listed twice or
            ambiguous; a label is missing.
    """
    path = Path(path)
    header, rows = _rows(path)
    columns = _find_columns(path, header)
    cells: dict[str, list[str]] = {name: [] for name in columns}
    for line, row in rows:
        for name, i in columns.items():
            value = row[i].strip() if i < len(row) else ""
            if not value:
                raise UserError(
                    f"{path}: line {line} has no value for '{header[i]}'. Complete the line."
                )
            cells[name].append(value)
    existing = list(images_below(path.parent))
    images = _find_images(path, cells["filename"], existing)
    labels, splits = cells["label"], cells.get("split", [])
    titles = {name: header[i] for name, i in columns.items()}
    if len(set(labels)) < 2:
        raise UserError(
            f"{path}: column '{titles['label']}' has only one value, '{labels[0]}'. "
            "Classification needs two or more classes."
        )
    unlisted = tuple(sorted(set(existing) - set(images)))
    return LabelTable(path, titles, images, labels, splits, unlisted)


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and the line number and cells of each line below it."""
    try:
        file = io.StringIO(read_text(path), newline="")  # Excel writes a byte-order mark
        first = file.readline()
        file.seek(0)
        # Excel writes semicolons in many locales.
        separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        reader = csv.reader(file, delimiter=separator)
        header = [cell.strip() for cell in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Check the path.") from None
    except (UnicodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a UTF-8 table ({error}). Save it as UTF-8."
        ) from None
    if not rows:
        raise UserError(f"{path} has no lines below the names of its columns. Add the images.")
    return header, rows


def _find_columns(path: Path, header: list[str]) -> dict[str, int]:
    """Return the indices of the columns of file names, labels and, if there is one, splits."""
    plain = [name.lower().replace(" ", "_").replace("-", "_") for name in header]
    found = {}
    for wanted, names in COLUMNS.items():
        columns = [i for name in names for i, column in enumerate(plain) if column == name]
        if columns and (len(columns) == 1 or wanted == "filename" or plain.count(wanted) == 1):
            found[wanted] = columns[0]
        elif columns or wanted != "split":
            problem = (
                f"columns {_some(header[i] for i in columns)} may all be the {wanted}"
                if columns
                else f"no column has the name of a {wanted}, such as {_some(names)}"
            )
            raise UserError(
                f"{path}: {problem}. The first line names the columns {_some(header, 8)}. "
                f"{_fix_columns(header, wanted)}"
            )
    return found


def _fix_columns(header: list[str], wanted: str) -> str:
    """Return what to do about a table without a column that is needed, or with several."""
    if any(map(has_image_suffix, header)):
        return "That line is an image. Add a line with the names of the columns above it."
    fix = f"Rename one to '{wanted}'."
    if wanted == "label" and len(header) > 3:
        fix += " If each class has a column of its own, write the class names into one column."
    return fix


def _find_images(path: Path, names: list[str], files: list[str]) -> list[str]:
    """Return the file in `files` to which each name refers.

    A name is relative to the folder of the table or to a folder in it. It may lack the file
    extension.
    """
    root = path.parent
    existing: dict[str, list[str]] = {}  # maps each possible name to the matching paths
    for image in files:
        whole = PurePosixPath(image)
        inside = PurePosixPath(*whole.parts[1:])  # "." for an image next to the table
        for relative in (whole, inside) if inside.parts else (whole,):
            existing.setdefault(str(relative), []).append(image)
            existing.setdefault(str(relative.with_suffix("")), []).append(image)
    found, missing = [], []
    for name in names:
        wanted = _relative(root, name)
        paths = existing.get(wanted, [])
        exact = [image for image in paths if image == wanted]
        if len(paths) > 1 and not exact:
            raise UserError(
                f"{path}: '{name}' may be {_some(sorted(paths))}. Include the folder and the file "
                "extension in the name."
            )
        if not paths:
            missing.append(name)
        found += exact or paths
    others = [name for name in missing if not has_image_suffix(name)]
    if unread := [name for name in others if os.path.isfile(root / name)]:
        count = "1 listed file" if len(unread) == 1 else f"{len(unread)} listed files"
        raise UserError(
            f"{path}: {count} cannot be read as images: "
            f"{describe_skipped(unread)}. Convert them, or remove the lines."
        )
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(names)} listed images do not exist, for example "
            f"{_some(missing)}. Images may be in {root} or in a folder in it, as "
            f"{', '.join(FORMATS)}. Correct the names, or remove the lines."
        )
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise UserError(
            f"{path}: {counted(len(twice), 'image is', 'images are')} listed twice, for example "
            f"{_some(twice)}. Keep one line for each image."
        )
    return found


def _relative(root: Path, name: str) -> str:
    """Return a name relative to the folder of the table, with slashes."""
    wanted = name.replace("\\", "/")
    if PurePosixPath(wanted).is_absolute() and Path(wanted).is_relative_to(root.absolute()):
        wanted = str(Path(wanted).relative_to(root.absolute()))
    return str(PurePosixPath(wanted))  # removes ./


def _selected(split: str, table: LabelTable, images: ImageList) -> ImageList:
    """Select the images of a split by the column of the table."""
    column = table.columns["split"]
    split_by_image = dict(zip(table.images, table.splits, strict=True))
    values = sorted(set(table.splits))
    chosen, val = choose_splits(values, f"{table.path}, column '{column}'")
    unknown = set(values) - {*chosen.values(), val}
    if unknown or len(chosen) < 2:
        raise UserError(
            f"{table.path}: column '{column}' has the values {_some(values, 8)}. Allowed are "
            "'train', 'test' and 'val'. The column must contain 'train', and 'test' or 'val'. "
            "Correct the values, or remove the column."
        )
    parts = {
        name: [i for i, image in enumerate(images.names) if split_by_image[image] == value]
        for name, value in chosen.items()
    }
    labels = {name: {images.labels[i] for i in part} for name, part in parts.items()}
    if untrained := labels["test"] - labels["train"]:
        names = _some(images.class_names[label] for label in sorted(untrained))
        raise UserError(
            f"{table.path}: {names} have test images, but no training images. Add training images, "
            "or remove these classes."
        )
    notes = (f"{table.path}: images with {column} '{val}' are not used",) if val else ()
    return ImageList(
        images.folder,
        [images.names[i] for i in parts[split]],
        [images.labels[i] for i in parts[split]],
        images.class_names,
        f"{table.path.name}, {column} '{chosen[split]}'",
        notes,
    )


def _class_order(labels: Sequence[str]) -> Callable[[str], Any]:
    """Return a sort key: by value if all labels are integers, else by text."""
    try:
        numbers = {label: int(label) for label in labels}
    except ValueError:
        return str
    return lambda label: (numbers[label], label)


def _some(names: Iterable[str], shown: int = SHOWN) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"'{name}'" for name in names[:shown]) + more
