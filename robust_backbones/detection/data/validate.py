"""Find errors in a detection dataset before training."""

import math
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detectron2.data import MetadataCatalog

from robust_backbones.core.errors import UserError
from robust_backbones.core.images import FINDINGS, Decoding, examine
from robust_backbones.detection.data.annotations import Annotations, Image, Object, Problem
from robust_backbones.detection.data.coco_annotations import read_coco
from robust_backbones.detection.data.custom import CustomDataset, polygons
from robust_backbones.detection.data.registry import check_dataset
from robust_backbones.detection.data.voc_annotations import read_voc

# A box may exceed the image by this number of pixels. Some boxes are rounded, and some VOC files
# count pixels from 0.
SLACK = 1.0

# Kind of problem -> explanation. DATASETS.REPAIR repairs the problems in REPAIRABLE. The user must
# fix the problems in FATAL in the files. The problems in NOTES are only for information.
REPAIRABLE = {
    "no area": "a box has no area, so it cannot be learned and counts as missed in evaluation",
    "outside": "a box exceeds the image by more than a pixel",
    "no box": "an object has no box",
    "broken mask": "a mask has no polygon of at least three points",
    "no area field": "evaluation by size needs the COCO field `area`",
}
FATAL = {
    **{kind: f"images {words}" for kind, (level, words) in FINDINGS.items() if level == "error"},
    "wrong size": "the image size differs from the size in the annotations",
    "duplicate id": "an id occurs twice",
    "unknown image": "an annotation belongs to an image that is not listed",
    "unknown class": "an annotation has a category that is not listed",
    "no masks": "some objects have masks and others do not",
}
NOTES = {
    **{kind: f"images {words}" for kind, (level, words) in FINDINGS.items() if level == "warning"},
    "turned": f"images {FINDINGS['turned'][1]}; boxes must match the turned image",
    "empty class": "a class has no object",
    "no objects": "an image has no object; Detectron2 excludes it from training",
    "not annotated": "an image has no annotation file, so it is not used",
    "crowd": "a region contains many objects; excluded from training, ignored in evaluation",
    "difficult": "VOC's evaluation ignores the object; Detectron2 trains on it",
}


def annotations_of(name: str) -> Annotations:
    """Read the annotations of a registered dataset, including invalid ones.

    Raises:
        UserError: the dataset is unknown, or its metadata do not contain the paths of its
            annotation files.
    """
    check_dataset(name)
    meta = MetadataCatalog.get(name)
    source: CustomDataset | None = meta.get("source")
    if source is not None:
        return source.read(list(meta.thing_classes) or None)
    if meta.get("json_file"):
        return read_coco(Path(meta.image_root), Path(meta.json_file))
    if meta.get("dirname"):
        return read_voc(Path(meta.dirname), meta.split, list(meta.thing_classes))
    raise UserError(f"dataset '{name}': the metadata have neither json_file nor dirname.")


def check(
    found: Annotations, pixels: bool = True, decoding: Decoding | None = None, workers: int = 8
) -> list[Problem]:
    """Find all problems of a split, in the order of its images.

    Args:
        found: annotations of the split.
        pixels: whether to decode the image files, to find missing, damaged and unusual files, and
            wrong sizes.
        decoding: settings of the decoder.
        workers: number of threads that open the image files.
    """
    problems = list(found.problems)
    masks = sum(thing.segmentation is not None for image in found.images for thing in image.objects)
    for image in found.images:
        problems += _object_problems(image, found.classes, some_masks=masks > 0)
    counts = Counter(thing.class_index for image in found.images for thing in image.objects)
    problems += [
        Problem("empty class", "", f"no object of class {name}")
        for index, name in enumerate(found.classes)
        if not counts[index]
    ]
    if pixels:
        with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
            decoder = decoding or Decoding()
            for some in pool.map(lambda image: _file_problems(image, decoder), found.images):
                problems += some
    return problems


def _object_problems(image: Image, classes: list[str], some_masks: bool) -> list[Problem]:
    name, problems = image.file.name, []
    for index, thing in enumerate(image.objects):
        label = f"object {index if thing.number is None else thing.number}"
        if thing.class_index is not None:
            label += f" ({classes[thing.class_index]})"
        problems += [
            Problem(kind, name, f"{label}: {text}") for kind, text in _box_problems(thing, image)
        ]
        if some_masks and thing.segmentation is None and not thing.empty:
            problems.append(Problem("no masks", name, f"{label} has no mask, but others do"))
    if not image.objects:
        problems.append(Problem("no objects", name, "no object is annotated"))
    return problems


def _box_problems(thing: Object, image: Image) -> list[tuple[str, str]]:
    """Return the problems of an object as `(kind, text)`."""
    if thing.box is None:
        return [("no box", "missing")]
    found = []
    shown = "[" + ", ".join(f"{value:g}" for value in thing.given) + "]"
    if thing.empty or not all(map(math.isfinite, thing.box)):
        found.append(("no area", f"box {shown}"))
    else:
        x0, y0, x1, y1 = thing.box
        excess = max(-x0, -y0, x1 - image.width, y1 - image.height)
        if image.width and image.height and excess > SLACK:
            found.append(("outside", f"box {shown} in {image.width} x {image.height}"))
    if isinstance(thing.segmentation, list) and not polygons(thing.segmentation):
        found.append(("broken mask", "no polygon of three points"))
    if thing.number is not None and thing.area is None:
        found.append(("no area field", "missing"))
    if thing.crowd:
        found.append(("crowd", f"box {shown}"))
    if thing.difficult:
        found.append(("difficult", f"box {shown}"))
    return found


def _file_problems(image: Image, decoding: Decoding) -> list[Problem]:
    name, examined = image.file.name, examine(image.file, decoding)
    problems = [Problem(kind, name, text) for kind, text in examined.findings]
    if examined.image and examined.image.size != (image.width, image.height):
        width, height = examined.image.size
        text = f"{width} x {height}, but {image.width} x {image.height} in the annotations"
        problems.append(Problem("wrong size", name, text))
    return problems


def refuse_untrainable(name: str, found: Annotations, masks: bool) -> None:
    """Reject training data that have no objects, or no masks if the detector predicts masks.

    Args:
        name: name of the dataset.
        found: annotations of the dataset.
        masks: whether the detector predicts masks.

    Raises:
        UserError: no image has an object, or no object has a mask although `masks` is true.
    """
    objects = [thing for image in found.images for thing in image.objects if not thing.crowd]
    if not objects:
        raise UserError(
            f"dataset '{name}': no object in {len(found.images)} images. Give annotated images."
        )
    if masks and not any(thing.segmentation for thing in objects):
        raise UserError(
            f"MODEL.MASK_ON is True, but dataset '{name}' has no masks. Set it to False."
        )


def refuse_faults(name: str, found: Annotations, repair: bool) -> None:
    """Reject annotations that Detectron2 would change or exclude silently.

    Image files are not opened.

    Args:
        name: name of the dataset.
        found: annotations of the dataset.
        repair: whether the problems in `REPAIRABLE` will be repaired. They are then accepted.

    Raises:
        UserError: the annotations have faults. The message shows their number by kind, and the
            first fault.
    """
    stops = set(FATAL) if repair else set(FATAL) | set(REPAIRABLE)
    problems = [p for p in check(found, pixels=False) if p.kind in stops]
    if not problems:
        return
    counts = Counter(p.kind for p in problems)
    listed = ", ".join(f"{count} of kind '{kind}'" for kind, count in counts.items())
    first = problems[0]
    where = f"{first.image}: " if first.image else ""
    fix = "fix the files"
    if not set(counts) & set(FATAL):
        fix += ", or set DATASETS.REPAIR True, which clips boxes at the image border and removes "
        fix += "objects without area"
    source: CustomDataset | None = MetadataCatalog.get(name).get("source")
    raise UserError(
        f"dataset '{name}' has faults: {listed}. The first: {where}{first.text}. {fix[0].upper()}"
        f"{fix[1:]}. To list all faults, run: robust-backbones check-data '{source or name}'"
    )
