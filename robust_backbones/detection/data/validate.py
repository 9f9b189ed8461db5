"""Find errors in a detection dataset before training."""

import logging
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from detectron2.data import MetadataCatalog

from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.images import FINDINGS, Decoding, examine
from robust_backbones.detection.data.annotations import Annotations, Image, Object, Problem
from robust_backbones.detection.data.custom import CustomDataset

# A box may exceed the image by this number of pixels. Some boxes are rounded, and some VOC files
# count pixels from 0.
SLACK = 1.0

# Kind of problem -> explanation. DATASETS.REPAIR repairs the problems in REPAIRABLE. The user must
# fix the problems in FATAL in the files. The problems in MASKS are errors only for detectors that
# predict masks. The problems in NOTES are informational.
REPAIRABLE = {
    "no area": "a box has no area; training cannot use it, and evaluation counts it as missed",
    "tiny": "a box is thinner than a pixel; training cannot use it",
    "outside": "a box exceeds the image by more than a pixel",
    "no box": "an object has no valid box",
}
FATAL = {
    **{kind: f"images {words}" for kind, (level, words) in FINDINGS.items() if level == "error"},
    "outside folder": "an image file is not in the folder of the images",
    "wrong size": "the image size differs from the size in the annotations",
    "duplicate id": "an id occurs twice",
    "unknown image": "an annotation belongs to an image that is not listed",
    "unknown class": "an annotation has a category or index that is not listed",
    "bad label": "a line of a label file is invalid",
    "no annotations": "the file has no list of annotations",
    "no images": "no image is listed",
    "normalized boxes": "all boxes are in [0, 1], but they must be in pixels",
    "no partner": "an image has no mask of the same name, or a mask has no image",
    "invalid mask": "a mask is not an 8-bit PNG with one channel",
    "invalid iscrowd": "iscrowd is neither 0 nor 1",
    "all crowds": "all objects are crowds, so none can be learned or detected",
}
MASKS = {
    "broken mask": "a mask has no polygon of at least three points, or invalid numbers",
    "no masks": "some objects have masks and others do not",
}
NOTES = {
    **{kind: f"images {words}" for kind, (level, words) in FINDINGS.items() if level == "warning"},
    "turned": f"images {FINDINGS['turned'][1]}; boxes must match the upright image",
    "empty class": "a class has no object or pixel",
    "no labels": "no pixel of a mask has a label",
    "no objects": "an image has no object; Detectron2 excludes it from training",
    "not annotated": "an image has no annotation file and is excluded",
    "skipped": "files are not images that this installation can read",
    "repeated label": "a line of a label file is repeated; the object is used once",
    "crowd": "a region contains many objects; excluded from training, ignored in evaluation",
    "difficult": "VOC's evaluation ignores the object; Detectron2 trains on it",
    "same name": "categories have the same name; each is a class, named with its id",
    "iscrowd as text": "iscrowd is text; it is read as the number",
    "broken polygon": "a polygon has fewer than three points; the mask's other polygons are used",
    "no area field": "the area is missing or invalid; evaluation uses the area of the mask or box",
    "backslash": "a file name has backslashes; they are read as separators",
    "byte order mark": "the file starts with a byte order mark, which is skipped",
    "no id": "annotations have no id; no command uses it",
    "repeated id": "annotations have the same id; no command uses it",
}
# Notes about values that are read differently from how they are written. They are logged before a
# run.
_CONVERTED = {"same name", "iscrowd as text", "broken polygon", "backslash", "repeated label"}
# Problems of datasets that other code registers and Detectron2 reads. It cannot read these data, or
# it trains on values that differ from the files. It trains correctly on data with other problems.
# For example, it skips boxes with zero area.
_DETECTRON2 = {
    "no box",
    "no images",
    "duplicate id",
    "unknown class",
    "normalized boxes",
    "invalid iscrowd",
    "all crowds",
    "iscrowd as text",
    "backslash",
    "byte order mark",
    "no id",
    "repeated id",
}


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
    problems = [*found.problems, *_normalized(found)]
    normalized = len(problems) > len(found.problems)
    if not found.images:
        problems.append(Problem("no images", "", f"{found.source} has no images"))
    if not found.semantic:
        problems += _all_object_problems(found, sizes=not normalized)
    problems += _empty_classes(found)
    if pixels:
        with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
            decoder = decoding or Decoding()
            for some in pool.map(lambda image: _file_problems(image, decoder), found.images):
                problems += some
    return problems


def _all_object_problems(found: Annotations, sizes: bool) -> list[Problem]:
    masks = found.has("segmentation") or found.has("mask_fault")
    problems = [
        problem
        for image in found.images
        for problem in _object_problems(image, found.classes, masks, sizes)
    ]
    crowds = [thing.crowd for image in found.images for thing in image.objects]
    if crowds and all(crowds):
        text = f"all {len(crowds)} objects have iscrowd 1"
        problems.append(Problem("all crowds", "", text))
    return problems


def class_counts(found: Annotations) -> list[int] | None:
    """Count the objects of each class, or the pixels of semantic masks.

    Returns:
        The counts in the order of `found.classes`; None if pixels were not counted.
    """
    if found.semantic:
        pixels = [image.pixels for image in found.images]
        if None in pixels:
            return None
        return [sum(column) for column in zip(*pixels, strict=True)]
    objects = Counter(thing.class_index for image in found.images for thing in image.objects)
    return [objects[index] for index in range(len(found.classes))]


def _empty_classes(found: Annotations) -> list[Problem]:
    what = "pixel" if found.semantic else "object"
    counts = class_counts(found) or ()
    return [
        Problem("empty class", "", f"no {what} of class {name}")
        for name, count in zip(found.classes, counts, strict=bool(counts))
        if not count
    ]


def _normalized(found: Annotations) -> list[Problem]:
    """Return a problem if no coordinate of any box exceeds 1, although images are larger."""
    boxes = [thing.given for image in found.images for thing in image.objects if thing.box]
    if not boxes or any(max(box) > 1 for box in boxes):
        return []
    if all(0 < image.width <= 1 and 0 < image.height <= 1 for image in found.images):
        return []
    text = f"none of {len(boxes)} boxes exceeds 1; the first is {_shown(boxes[0])}"
    return [Problem("normalized boxes", "", text)]


def _object_problems(
    image: Image, classes: list[str], some_masks: bool, sizes: bool
) -> list[Problem]:
    """Return the problems of an image's objects.

    Args:
        image: annotated image.
        classes: class names.
        some_masks: whether any object of the dataset has a mask.
        sizes: whether to report boxes that are thinner than a pixel.
    """
    name, problems = image.name, []
    for index, thing in enumerate(image.objects):
        label = thing.label(index, classes)
        problems += [
            Problem(kind, name, f"{label}: {text}")
            for kind, text in _box_problems(thing, image)
            if sizes or kind != "tiny"
        ]
        if thing.mask_fault:
            problems.append(Problem("broken mask", name, f"{label}: {thing.mask_fault}"))
        elif some_masks and thing.segmentation is None and not thing.empty:
            problems.append(Problem("no masks", name, f"{label} has no mask, but others do"))
    if not image.objects:
        problems.append(Problem("no objects", name, "no object is annotated"))
    return problems


def _box_problems(thing: Object, image: Image) -> list[tuple[str, str]]:
    """Return the problems of an object with a box as `(kind, text)`."""
    if thing.box is None:  # the reader reports this
        return []
    found = []
    shown = f"box {_shown(thing.given)}"
    if thing.empty:
        found.append(("no area", shown))
    else:
        x0, y0, x1, y1 = thing.box
        excess = max(-x0, -y0, x1 - image.width, y1 - image.height)
        if image.width and image.height and excess > SLACK:
            found.append(("outside", f"{shown} in {image.width} x {image.height}"))
        if thing.is_tiny():
            found.append(("tiny", shown))
    if thing.crowd:
        found.append(("crowd", shown))
    if thing.difficult:
        found.append(("difficult", shown))
    return found


def _shown(box: list[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


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
    if found.semantic:
        return
    objects = [thing for image in found.images for thing in image.objects if not thing.crowd]
    if not objects:
        raise UserError(
            f"dataset '{name}': no objects in {counted(len(found.images), 'image', 'images')}. "
            "Give annotated images."
        )
    if masks and not any(thing.segmentation for thing in objects):
        raise UserError(
            f"MODEL.MASK_ON is True, but dataset '{name}' has no masks. Set it to False."
        )


def refuse_faults(
    name: str, found: Annotations, repair: bool, masks: bool = False, scored: bool = False
) -> None:
    """Reject annotations that Detectron2 would change or exclude silently.

    Image files are not opened. Detectron2 itself reads the datasets that other code registers. They
    are rejected only if it cannot read them, or would train on values that differ from the files.

    Args:
        name: name of the dataset.
        found: annotations of the dataset.
        repair: whether the problems in `REPAIRABLE` will be repaired. They are then accepted.
        masks: whether the detector predicts masks.
        scored: whether the dataset is used for evaluation.

    Raises:
        UserError: the annotations have faults. The message shows their number by kind, and the
            first fault.
    """
    source: CustomDataset | None = MetadataCatalog.get(name).get("source")
    if source is not None or found.semantic:
        stops, noted = set(FATAL), set(_CONVERTED)
        stops |= set() if repair else set(REPAIRABLE)
        if masks:
            stops |= {"no masks"} if repair else set(MASKS)
    else:
        # Detectron2 skips objects with broken masks, but evaluation of masks cannot.
        stops, noted = (
            set(_DETECTRON2),
            set(REPAIRABLE) | _CONVERTED | {"broken mask", "unknown image"},
        )
        if masks:
            stops |= set(MASKS) if scored else {"no masks"}
    problems = check(found, pixels=False)
    details = f"To list all, run: robust-backbones check-data '{source or name}'"
    _warn(f"dataset '{name}'", problems, noted - stops)
    problems = [problem for problem in problems if problem.kind in stops]
    if not problems:
        return
    counts = Counter(p.kind for p in problems)
    listed = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
    fix = "Fix the files"
    if source is not None and not repair and set(counts) <= {*REPAIRABLE, "broken mask"}:
        fix += ", or set DATASETS.REPAIR True, which clips boxes at the image border and removes "
        fix += "objects without a usable box or mask"
    elif set(counts) <= set(MASKS):
        fix += ", or set MODEL.MASK_ON False"
    raise UserError(
        f"dataset '{name}' has annotation errors: {listed}. First: {_first(problems)}. {fix}. "
        f"{details}"
    )


def warn_of_conversions(found: Annotations) -> None:
    """Warn about values that an evaluation reads differently from how they are written.

    Boxes in [0, 1] and boxes with zero area, which no detection can match, are named as well.
    """
    problems = [*found.problems, *_normalized(found)]
    problems += [
        Problem(
            "no area", image.name, f"{thing.label(index, found.classes)}: {_shown(thing.given)}"
        )
        for image in found.images
        for index, thing in enumerate(image.objects)
        if thing.empty
    ]
    _warn(found.source, problems, _CONVERTED | {"normalized boxes", "no area"})


def _warn(name: str, problems: list[Problem], kinds: set[str]) -> None:
    for kind in sorted(kinds):
        some = [problem for problem in problems if problem.kind == kind]
        if some:
            logging.getLogger(__name__).warning(
                "%s: %s (%d), %s. First: %s", *(name, kind, len(some), _ALL[kind], _first(some))
            )


_ALL = FATAL | REPAIRABLE | MASKS | NOTES


def _first(problems: list[Problem]) -> str:
    first = problems[0]
    return f"{first.image}: {first.text}" if first.image else first.text
