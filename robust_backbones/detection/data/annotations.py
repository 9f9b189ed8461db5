"""Annotated images and objects, as `coco_annotations` and `voc_annotations` read them.

Detectron2's readers stop at an invalid annotation, or ignore the fault. Our readers return invalid
annotations as well. `validate` checks them. `custom` repairs them and converts them to Detectron2's
dictionaries.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Object:
    """An annotated object.

    Attributes:
        name: class name; None if the file does not list the category.
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

    name: str | None
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
        faults: faults of the annotation file, such as duplicate ids, as `(kind, text)`.
    """

    classes: list[str]
    ids: list[int]
    images: list[Image]
    faults: list[tuple[str, str]] = field(default_factory=list)


def inside(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`, and reject names outside the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"'{name}' is outside the folder of the images")
    return Path(folder, name)
