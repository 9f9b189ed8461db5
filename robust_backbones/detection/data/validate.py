"""What is wrong with a detection data set, before it spoils a training."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import MetadataCatalog
from PIL import Image as Pillow

from robust_backbones.core.errors import UserError
from robust_backbones.core.images import check_size
from robust_backbones.detection.data.annotations import (
    Annotations,
    Image,
    Object,
    read_coco,
    read_voc,
)
from robust_backbones.detection.data.custom import Source, polygons
from robust_backbones.detection.data.registry import check_dataset

SLACK = 1.0  # pixels a box may reach out: annotators' rounding, and boxes counted from 0 in VOC

# Kind -> what training makes of it. The first group DATASETS.REPAIR mends, the second nobody but
# the owner of the data can, the third is worth knowing and no fault.
MENDED = {
    "no area": "a box without area teaches nothing and counts as missed in evaluation",
    "outside": "a box reaches out of the image by more than a pixel",
    "no box": "an object without a box",
    "broken mask": "a mask without a polygon of three points",
    "no area field": "evaluation by size needs the COCO field `area`",
}
FATAL = {
    "missing file": "an image that is not there",
    "unreadable": "an image that cannot be decoded",
    "wrong size": "the annotations give another size than the image has",
    "duplicate id": "an id that occurs twice",
    "unknown image": "an annotation of an image that is not listed",
    "unknown class": "an annotation of a category that is not listed",
    "no masks": "some objects have a mask, others have none",
}
NOTED = {
    "EXIF rotation": "the camera's note is to turn the image; Detectron2 does, so must annotators",
    "empty class": "a class without an object",
    "no objects": "an image without an object; Detectron2 leaves it out of training",
    "crowd": "a region of many objects; left out of training, ignored in evaluation",
    "difficult": "an object that VOC's evaluation ignores; it is trained on, as in Detectron2",
}


@dataclass(frozen=True)
class Problem:
    """Something found: one of the kinds above, where, and the values."""

    kind: str
    image: str
    text: str


def annotations_of(name: str) -> Annotations:
    """The annotations of a registered data set, as they stand in its files.

    Raises:
        UserError: it was registered without saying where its files are.
    """
    check_dataset(name)
    meta = MetadataCatalog.get(name)
    source: Source | None = meta.get("source")
    if source is not None:
        return source.read(list(meta.thing_classes) or None)
    if meta.get("json_file"):
        return read_coco(Path(meta.image_root), Path(meta.json_file))
    if meta.get("dirname"):
        return read_voc(Path(meta.dirname), meta.split, list(meta.thing_classes))
    raise UserError(f"data set '{name}' does not say where its annotation files are.")


def check(found: Annotations, pixels: bool = True, workers: int = 8) -> list[Problem]:
    """All problems of a split, in the order of its images.

    Args:
        pixels: open the image files, too: missing and damaged ones, sizes, EXIF rotation.
        workers: threads that open them.
    """
    problems = [Problem(kind, "", text) for kind, text in found.faults]
    masks = sum(thing.segmentation is not None for image in found.images for thing in image.objects)
    for image in found.images:
        problems += _of_objects(image, found.classes, some_masks=masks > 0)
    counts = Counter(thing.name for image in found.images for thing in image.objects)
    problems += [
        Problem("empty class", "", f"no object of class {name}")
        for name in found.classes
        if not counts[name]
    ]
    if pixels:
        with ThreadPoolExecutor(workers) as pool:
            for some in pool.map(_of_file, found.images):
                problems += some
    return problems


def _of_objects(image: Image, classes: list[str], some_masks: bool) -> list[Problem]:
    name, problems = image.file.name, []
    for index, thing in enumerate(image.objects):
        label = f"object {index if thing.number is None else thing.number} ({thing.name})"
        problems += [Problem(kind, name, f"{label}: {text}") for kind, text in _of(thing, image)]
        if thing.name not in classes:
            problems.append(Problem("unknown class", name, f"{label} is none of the classes"))
        if some_masks and thing.segmentation is None and not thing.empty:
            problems.append(Problem("no masks", name, f"{label} has no mask, others have"))
    if not image.objects:
        problems.append(Problem("no objects", name, "nothing is annotated"))
    return problems


def _of(thing: Object, image: Image) -> list[tuple[str, str]]:
    """Kinds and values of one object."""
    if thing.box is None:
        return [("no box", "it has none")]
    found = []
    shown = "[" + ", ".join(f"{value:g}" for value in thing.given) + "]"
    if thing.empty or not all(map(math.isfinite, thing.box)):
        found.append(("no area", f"box {shown}"))
    else:
        x0, y0, x1, y1 = thing.box
        reach = max(-x0, -y0, x1 - image.width, y1 - image.height)
        if image.width and image.height and reach > SLACK:
            found.append(("outside", f"box {shown} in {image.width} x {image.height}"))
    if isinstance(thing.segmentation, list) and not polygons(thing.segmentation):
        found.append(("broken mask", "no polygon of three points"))
    if thing.number is not None and thing.area is None:
        found.append(("no area field", "it has none"))
    if thing.crowd:
        found.append(("crowd", f"box {shown}"))
    if thing.difficult:
        found.append(("difficult", f"box {shown}"))
    return found


_TURNED = 0x0112  # EXIF tag of the orientation; 1 is upright


def _of_file(image: Image) -> list[Problem]:
    name = image.file.name
    try:
        with Pillow.open(image.file) as picture:
            check_size(picture)
            width, height = picture.size
            turn = picture.getexif().get(_TURNED, 1)
            picture.load()
    except FileNotFoundError:
        return [Problem("missing file", name, f"{image.file} does not exist")]
    except Exception as error:  # a damaged file can raise anything in a decoder
        return [Problem("unreadable", name, str(error) or type(error).__name__)]
    problems = []
    if turn not in (0, 1):
        problems.append(Problem("EXIF rotation", name, f"orientation {turn}"))
    if turn in (5, 6, 7, 8):  # a quarter turn
        width, height = height, width
    if (width, height) != (image.width, image.height):
        text = f"{width} x {height}; the annotations say {image.width} x {image.height}"
        problems.append(Problem("wrong size", name, text))
    return problems


def refuse_untrainable(name: str, found: Annotations, masks: bool) -> None:
    """Stop before a training on data that have nothing to teach.

    Raises:
        UserError: no object in any image, or none with a mask where `masks` are to be learned.
    """
    objects = [thing for image in found.images for thing in image.objects if not thing.crowd]
    if not objects:
        raise UserError(
            f"data set '{name}' has no object in its {len(found.images)} images; give "
            "annotated ones."
        )
    if masks and not any(thing.segmentation for thing in objects):
        raise UserError(
            f"MODEL.MASK_ON is True, but data set '{name}' has boxes without masks; "
            "set it to False."
        )


def refuse(name: str, found: Annotations, repair: bool) -> None:
    """Stop before a training on data that would be changed in silence.

    Images are not opened; `check` does that.

    Args:
        repair: whether boxes are going to be mended.

    Raises:
        UserError: says how many of what, names the first and what to do.
    """
    stops = set(FATAL) if repair else set(FATAL) | set(MENDED)
    problems = [p for p in check(found, pixels=False) if p.kind in stops]
    if not problems:
        return
    counts = Counter(p.kind for p in problems)
    listed = ", ".join(f"{count} of kind '{kind}'" for kind, count in counts.items())
    first = problems[0]
    where = f"{first.image}: " if first.image else ""
    fix = "mend the files"
    if not set(counts) & set(FATAL):
        fix += ", or set DATASETS.REPAIR True, which cuts boxes at the image's edge and leaves out "
        fix += "objects without area"
    source: Source | None = MetadataCatalog.get(name).get("source")
    raise UserError(
        f"data set '{name}' has faults: {listed}. The first: {where}{first.text}. {fix[0].upper()}"
        f"{fix[1:]}; all are listed by: robust-backbones check-data '{source or name}'."
    )
