"""Annotated images and objects, as the readers of COCO, VOC and Detectron2's catalog return them.

The check, training and evaluation use the same objects. Detectron2's readers stop at an invalid
annotation, or ignore the fault. Our readers return invalid annotations as well. `validate` checks
them, `custom` repairs them and converts them to Detectron2's dictionaries, and `coco_scores`
compares predictions with them.
"""

import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HUGE = 1e15  # upper bound on coordinates, areas and scores


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset.

    Attributes:
        kind: key of a table of kinds in `validate`.
        image: file name of the image; empty if the problem concerns the whole dataset.
        text: description of the problem, with the object and its values.
    """

    kind: str
    image: str
    text: str


@dataclass(slots=True)
class Object:
    """An annotated object.

    Attributes:
        class_index: index into `Annotations.classes`; None if the class is not listed.
        box: box (x0, y0, x1, y1) in pixels; None if the file has no box. The point (0, 0) is the
            top left corner of the first pixel.
        given: numbers of the box in the file. COCO: x, y, width, height. VOC: xmin, ymin, xmax,
            ymax.
        empty: whether the numbers in `given` describe a box with zero area.
        area: area in the file, in pixels; None if the file has no valid area.
        crowd: whether COCO's `iscrowd` is set.
        difficult: whether VOC's `difficult` is set.
        segmentation: valid polygons or run lengths in COCO's format; None if there is no valid
            mask.
        mask_fault: error in an invalid mask; None if the mask is valid or absent.
        number: id of the COCO annotation; None for VOC.
        keypoints: keypoints in COCO's format; None if absent.
        num_keypoints: number of labeled keypoints in the file; None if absent.
    """

    class_index: int | None
    box: tuple[float, float, float, float] | None
    given: list[float]
    empty: bool
    area: float | None = None
    crowd: bool = False
    difficult: bool = False
    segmentation: list | dict | None = None
    mask_fault: str | None = None
    number: int | str | None = None
    keypoints: list | None = None
    num_keypoints: int | None = None

    def coco_box(self) -> list[float]:
        """Return the box as COCO's [x, y, width, height].

        COCO's numbers are returned as they are in the file, because x + width - x may differ from
        width by a rounding error.
        """
        assert self.box is not None
        x0, y0, x1, y1 = self.box
        x, y, width, height = self.given
        if (x, y, x + width, y + height) == self.box:
            return self.given
        return [x0, y0, x1 - x0, y1 - y0]

    def is_tiny(self) -> bool:
        """Return whether the box has an area but is thinner than a pixel."""
        if self.box is None or self.empty:
            return False
        _, _, width, height = self.coco_box()
        return width < 1 or height < 1

    def label(self, position: int, classes: list[str]) -> str:
        """Return a name for messages: the object's id, or else its position, and its class."""
        name = f"object {position if self.number is None else self.number}"
        return name if self.class_index is None else f"{name} ({classes[self.class_index]})"


@dataclass(frozen=True)
class Mask:
    """A file with the class index of each pixel.

    Attributes:
        file: path or URL of the file.
        reduce_zero_label: whether the value 0 means no label, and class k has the value k + 1.
    """

    file: str
    reduce_zero_label: bool = False

    @property
    def name(self) -> str:
        """Name of the file without its folder, for messages."""
        return os.path.basename(self.file)


@dataclass
class Image:
    """An annotated image of a dataset.

    Attributes:
        id: id in a COCO file, or name of the image in a VOC split.
        file: path of the image file; the empty path if only the annotations are evaluated.
        width: width in the annotations, in pixels; 0 if absent.
        height: height in the annotations, in pixels; 0 if absent.
        objects: annotated objects of the image.
        mask: semantic mask; None for data of detectors.
        pixels: number of pixels of each class in the mask; None if they were not counted.
    """

    id: int | str
    file: Path
    width: int
    height: int
    objects: list[Object] = field(default_factory=list)
    mask: Mask | None = None
    pixels: list[int] | None = None

    @property
    def name(self) -> str:
        """Name for messages: the name of the file, or else the id."""
        return self.file.name or f"image {self.id}"


@dataclass
class Annotations:
    """The annotations of a split.

    Attributes:
        source: name of the dataset or file in error messages.
        classes: class names, in order.
        ids: id of each class in the COCO file or Detectron2's metadata; 0, 1, … for VOC.
        images: images with their objects.
        problems: problems that only the reader can detect, such as duplicate ids and unlisted
            classes. `validate.check` finds the others.
    """

    source: str
    classes: list[str] = field(default_factory=list)
    ids: list[int | str] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def semantic(self) -> bool:
        """Whether the images have semantic masks instead of objects."""
        return any(image.mask for image in self.images)

    def has(self, key: str) -> bool:
        """Return whether any object has the attribute `key`, such as `"segmentation"`."""
        return any(getattr(thing, key) for image in self.images for thing in image.objects)


def inside(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`.

    Backslashes, which Windows programs write, are separators. An absolute name below the folder is
    accepted.

    Raises:
        ValueError: the file is outside the folder.
    """
    if "\\" in name and not Path(folder, name).exists():
        name = name.replace("\\", "/")
    path = Path(folder, name)
    if ".." in path.parts or path.is_absolute() or ":" in name:
        top, full = os.path.abspath(folder), os.path.abspath(path)
        if os.path.commonpath([top, full]) != top or re.match("[A-Za-z]:/", name):
            raise ValueError(f"'{name}' is outside the folder {folder}")
    return path


def unique(names: dict) -> dict:
    """Make the names in `{id: name}` unique: append the id to names that occur more than once."""
    counts = Counter(names.values())
    return {key: f"{name} (id {key})" if counts[name] > 1 else name for key, name in names.items()}


def id_fault(key: str, value: Any, known: Collection, where: str) -> str | None:
    """Describe the error in an id; return None if it is one of the known ids.

    Args:
        key: key of the id, such as `"image_id"`.
        value: id.
        known: known ids, all numbers or all strings.
        where: name of the list of known ids, such as a file.
    """
    try:
        if value in known:
            return None
    except TypeError:  # the id is not hashable
        pass
    ids = list(known)
    if isinstance(value, str) and ids and not isinstance(ids[0], str):
        return f'{key} is the text "{value}", but the ids in {where} are numbers'
    if isinstance(value, (int, float)) and ids and isinstance(ids[0], str):
        return f'{key} is the number {value}, but the ids in {where} are text, such as "{ids[0]}"'
    shown = ", ".join(map(str, ids[:3])) + (f", ..., {ids[-1]}" if ids[3:] else "")
    return f"{key} is {value!r}. The ids in {where} are {shown}"
