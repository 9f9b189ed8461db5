"""Annotated images and objects, as `coco_annotations` and `voc_annotations` read them.

Detectron2's readers stop at an invalid annotation, or ignore the fault. Our readers return invalid
annotations as well. `validate` checks them. `custom` repairs them and converts them to Detectron2's
dictionaries.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset.

    Attributes:
        kind: key of `validate.REPAIRABLE`, `validate.FATAL` or `validate.NOTES`.
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
        empty: whether the numbers in `given` describe a box without area.
        area: area in the file, in pixels; None if the file has no area.
        crowd: whether COCO's `iscrowd` is set.
        difficult: whether VOC's `difficult` is set.
        segmentation: polygons or run lengths in COCO's format; None if there is no mask.
        number: id of the COCO annotation; None for VOC.
    """

    class_index: int | None
    box: tuple[float, float, float, float] | None
    given: list[float]
    empty: bool
    area: float | None = None
    crowd: bool = False
    difficult: bool = False
    segmentation: list | dict | None = None
    number: int | None = None


@dataclass
class Image:
    """An annotated image of a dataset.

    Attributes:
        id: id in a COCO file, or name of the image in a VOC split.
        file: path of the image file.
        width: width in the annotations, in pixels; 0 if absent.
        height: height in the annotations, in pixels; 0 if absent.
        objects: annotated objects of the image.
    """

    id: int | str
    file: Path
    width: int
    height: int
    objects: list[Object] = field(default_factory=list)


@dataclass
class Annotations:
    """The annotations of a split.

    Attributes:
        classes: class names, in order.
        ids: id of each class in the COCO file; 0, 1, … for VOC.
        images: images with their objects.
        problems: problems that only the reader sees, such as duplicate ids and unlisted classes.
            `validate.check` finds the others.
    """

    classes: list[str]
    ids: list[int]
    images: list[Image]
    problems: list[Problem] = field(default_factory=list)


def inside(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`, and reject names outside the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"'{name}' is outside the folder of the images")
    return Path(folder, name)
