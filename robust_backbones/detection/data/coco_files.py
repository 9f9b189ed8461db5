"""Read and check COCO annotations and predictions, and renumber ids for all COCO evaluators."""

import contextlib
import gc
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from robust_backbones.core.errors import UserError

# Task -> key that its predictions must have, in addition to image, category and score.
TASKS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}

# Upper bound on the extent of a polygon in pixels, times its number of coordinates. pycocotools
# allocates 20 bytes for each pixel of the outline, even outside the image.
MAX_OUTLINE = 5e7
MAX_MASK_PIXELS = 1 << 28
HUGE = 1e15  # upper bound on coordinates, areas and scores


@dataclass(frozen=True)
class Truth:
    """Checked annotations of a dataset.

    Attributes:
        source: name of the dataset in error messages.
        images: images, `{id: {"id", "height", "width"}}`. The key is the id in the file, which may
            be a string (VOC). The inner id is the index of this id in sorted order, from 1.
        classes: class names, `{category id: name}`, sorted by id. The names are unique.
        annotations: COCO annotations. Their ids start from 1, because pycocotools uses id 0 for
            "not found". `image_id` is the inner id in `images`, and `category_id` is the index in
            `classes`, from 1.
    """

    source: str
    images: dict
    classes: dict
    annotations: list[dict]

    def has(self, key: str) -> bool:
        """Return whether any annotation has the key `key`, a value of `TASKS`."""
        return any(row.get(key) for row in self.annotations)


def load_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file cannot be read, or does not contain JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: the file cannot be read ({error.strerror}). Give a JSON file."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}).") from None


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Disable the garbage collector during the block.

    The collector would scan the many small objects of an annotation file repeatedly.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_garbage()
def truth(contents: dict, source: str) -> Truth:
    """Check the contents of a COCO annotation file with instances.

    If `iscrowd` is missing, it becomes 0. If `area` is missing, it becomes the area of the mask, or
    of the box if there is no mask. Annotations of unlisted images or categories are excluded, as in
    pycocotools, and a warning shows their number.

    Args:
        contents: contents of the file.
        source: name of the dataset in error messages.

    Raises:
        UserError: a list is missing, an id occurs twice, or a box or polygon is invalid.
    """
    parts = ("images", "categories", "annotations")
    if not isinstance(contents, dict) or not all(isinstance(contents.get(p), list) for p in parts):
        raise UserError(f"{source}: the file must be an object with the lists {', '.join(parts)}.")
    images = _indices(contents["images"], f"image of {source}")
    categories = _indices(contents["categories"], f"category of {source}")
    sizes = {}
    for row in contents["images"]:
        sizes[row["id"]] = {key: row[key] for key in ("height", "width") if key in row}
    rows, excluded = [], 0
    for row in contents["annotations"]:
        if _listed(row, images, categories):
            rows.append(row)
        else:
            excluded += 1
    if excluded:
        logging.getLogger(__name__).warning(
            "%s: %d annotations of unlisted images or categories were excluded", source, excluded
        )
    _finite_boxes(rows, f"annotation of {source}")
    ordered = {key: {"id": index} | sizes[key] for key, index in images.items()}
    checked = []
    for number, row in enumerate(rows, 1):
        image, area = ordered[row["image_id"]], row.get("area")
        _check_polygons(row, source)
        if not (type(area) is float and abs(area) < HUGE or _number(area)):  # fast path
            area = _area(row, image, source)
        checked.append(
            {
                **row,
                "id": number,
                "image_id": image["id"],
                "area": area,
                "category_id": categories[row["category_id"]],
                "iscrowd": 1 if row.get("iscrowd") else 0,
            }
        )
    names = {row["id"]: str(row.get("name", row["id"])) for row in contents["categories"]}
    return Truth(source, ordered, unique({key: names[key] for key in categories}), checked)


def _listed(row: Any, images: dict, categories: dict) -> bool:
    try:
        return row["image_id"] in images and row["category_id"] in categories
    except (TypeError, KeyError):  # the row is not an object, or an id is a list
        return False


def unique(names: dict) -> dict:
    """Make the names in `{id: name}` unique: append the id to names that occur more than once."""
    counts = Counter(names.values())
    return {key: f"{name} (id {key})" if counts[name] > 1 else name for key, name in names.items()}


def _indices(rows: list, what: str) -> dict:
    """Return `{id: index}` in sorted order, with indices from 1.

    pycocotools uses this order to break ties.
    """
    try:
        ids = [row["id"] for row in rows]
        ordered, counts = sorted(ids), Counter(ids)
    except (TypeError, KeyError):
        raise UserError(
            f"every {what} needs an id. Ids must be all numbers or all strings."
        ) from None
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"id {twice[0]} occurs in more than one {what}. Ids must be unique.")
    return {key: index for index, key in enumerate(ordered, 1)}


def _finite_boxes(rows: list[dict], what: str) -> None:
    try:
        boxes = np.array([row["bbox"] for row in rows])
        if _numbers(boxes, (len(rows), 4)) and (np.abs(boxes) < HUGE).all():
            return
    except (TypeError, ValueError, KeyError, OverflowError):
        pass
    for number, row in enumerate(rows):
        box = row.get("bbox")
        if not (isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_number, box))):
            raise UserError(
                f"{what}, number {number}, has bbox {box}. It must be [x, y, width, height], four "
                "finite numbers."
            )


def _number(value: Any) -> bool:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return real and abs(value) < HUGE  # also false for NaN


def segmentation_fault(part: object) -> str | None:
    """Describe the error in a segmentation; return None if pycocotools can read it.

    A valid segmentation is a list of polygons, `[[x, y, ...], ...]`, or run lengths, `{"size",
    "counts"}`. Huge numbers are invalid, because they crash pycocotools. This function does not
    check the number of points of a polygon.
    """
    if isinstance(part, dict):
        return _run_length_fault(part.get("size"), part.get("counts"))
    if not isinstance(part, list):
        return f"the segmentation is a {type(part).__name__}, neither polygons nor run lengths"
    for points in part:
        try:
            known = isinstance(points, list) and all(map(math.isfinite, points))
        except (TypeError, OverflowError):
            known = False
        if not known:
            return "a polygon is not a list of finite numbers"
        if points and (max(points) - min(points)) * len(points) > MAX_OUTLINE:
            return f"a polygon extends from {min(points)} to {max(points)}"
    return None


def _run_length_fault(size: Any, counts: Any) -> str | None:
    sides = size if isinstance(size, (list, tuple)) and len(size) == 2 else ()
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        return f"the run lengths have size {size}, not [height, width]"
    if math.prod(sides) > MAX_MASK_PIXELS:
        return f"the run lengths claim {sides[0]} x {sides[1]} pixels, more than {MAX_MASK_PIXELS}"
    if isinstance(counts, list):
        whole = all(type(run) is int and run >= 0 for run in counts)
        if not whole or sum(counts) != math.prod(sides):
            return "the run lengths do not sum to height x width"
    elif not isinstance(counts, (str, bytes)) or (isinstance(counts, str) and not counts.isascii()):
        return f"the run lengths have counts of type {type(counts).__name__}"
    return None


def _check_polygons(row: dict, source: str) -> None:
    part = row.get("segmentation")
    if part and (wrong := segmentation_fault(part)):
        raise UserError(f"{source}: annotation {row.get('id')}: {wrong}.")
    if isinstance(part, list):
        for points in part:
            if len(points) < 6 or len(points) % 2:
                raise UserError(
                    f"{source}: annotation {row.get('id')} has an invalid polygon. It must have x "
                    "and y of at least three points."
                )


def _area(row: dict, image: dict, source: str) -> float:
    """Compute the area of an annotation's mask in pixels, or of its box if there is no mask."""
    part, height, width = row.get("segmentation"), image.get("height"), image.get("width")
    if not part:
        return row["bbox"][2] * row["bbox"][3]
    if type(height) is not int or type(width) is not int:
        raise UserError(
            f"{source}: annotation {row.get('id')} has a mask, but its image has no height and "
            "width."
        )
    if isinstance(part, dict) and not isinstance(part["counts"], list):
        return float(coco_mask.area(part))
    codes = coco_mask.frPyObjects(part, height, width)
    return float(coco_mask.area(coco_mask.merge(codes) if isinstance(codes, list) else codes))


def tasks_of(rows: Any, truth: Truth) -> list[str]:
    """Return the tasks that predictions can be evaluated on.

    Without predictions, the tasks are boxes, and masks if the ground truth has masks.
    """
    if rows and isinstance(rows, list):
        keys = {key for row in rows if isinstance(row, dict) for key in row}
        return [task for task, key in TASKS.items() if key in keys] or ["bbox"]
    return [t for t in ("bbox", "segm") if t == "bbox" or truth.has(TASKS[t])]


def check_predictions(
    rows: Any, truth: Truth, tasks: Iterable[str], source: str = "the predictions"
) -> None:
    """Check predictions in COCO's result format.

    Args:
        rows: predictions, a list of `{"image_id", "category_id", "score"}` with `bbox` ([x, y,
            width, height], pixels), `segmentation` or `keypoints`.
        truth: checked annotations.
        tasks: keys of `TASKS`. The predictions must have the keys of these tasks.
        source: name of the predictions in error messages.

    Raises:
        UserError: a prediction is invalid. The message shows the first invalid prediction.
    """
    if not isinstance(rows, list):
        raise UserError(f"{source} must be a list of predictions, not a {type(rows).__name__}.")
    needed = ("image_id", "category_id", "score", *(TASKS[task] for task in tasks))
    if not _all_fit(rows, truth, set(needed)):
        for number, row in enumerate(rows):
            wrong = _fault(row, truth, needed)
            if wrong:
                raise UserError(f"{source}: prediction {number} (from 0) {wrong}")
    if "bbox" in tasks:
        _finite_boxes(rows, f"prediction of {source}")
    if "segm" in tasks:
        _check_masks(rows, truth, source)


def _all_fit(rows: list, truth: Truth, needed: set) -> bool:
    """Return whether `_fault` would accept all predictions, faster than by calling `_fault`."""
    images, classes = truth.images, truth.classes
    try:
        scores = np.array([row["score"] for row in rows])
        fit = all(
            row.keys() >= needed and row["image_id"] in images and row["category_id"] in classes
            for row in rows
        )
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        return False
    return fit and (not rows or _numbers(scores, (len(rows),)) and np.isfinite(scores).all())


def _numbers(values: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Return whether an array has a numeric dtype and the given shape.

    NumPy also converts strings and nested lists to arrays, without an error.
    """
    return values.dtype.kind in "fiu" and values.shape == shape


def _fault(row: Any, truth: Truth, needed: tuple) -> str | None:
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}. It must be an object with {', '.join(needed)}."
    missing = [key for key in needed if key not in row]
    if missing:
        return f"has no {missing[0]}. It must have {', '.join(needed)}."
    for key, known in (("image_id", truth.images), ("category_id", truth.classes)):
        try:
            if row[key] in known:
                continue
        except TypeError:  # the id is not hashable
            pass
        ids = list(known)
        shown = ", ".join(map(str, ids[:3])) + (f" ... {ids[-1]}" if ids[3:] else "")
        return f"has {key} {row[key]!r}, which is not in {truth.source} ({shown})."
    if not _number(row["score"]):
        return f"has score {row['score']!r}. It must be a finite number."
    return None


def _check_masks(rows: list[dict], truth: Truth, source: str) -> None:
    """Check the masks of predictions, and require that they have the size of their image.

    COCO evaluators accept masks of other sizes silently.
    """
    sizes = {key: [i.get("height"), i.get("width")] for key, i in truth.images.items()}
    for number, row in enumerate(rows):
        part, size = row["segmentation"], sizes[row["image_id"]]
        counts = part.get("counts") if type(part) is dict else None
        if type(counts) is str and counts.isascii() and part.get("size") == size:
            continue  # fast path
        runs = isinstance(part, dict) and isinstance(part.get("counts"), (str, bytes, list))
        polygons = isinstance(part, list) and part
        if not runs and not polygons:
            raise UserError(
                f"{source}: prediction {number} (from 0) has an invalid segmentation. It must be "
                "run lengths ({size, counts}) or a list of polygons."
            )
        wrong = segmentation_fault(part)
        if not wrong and polygons and any(len(p) < 6 or len(p) % 2 for p in part):
            wrong = "a polygon must have x and y of at least three points"
        if wrong:
            raise UserError(f"{source}: prediction {number} (from 0): {wrong}.")
        if runs and list(part["size"]) != size:
            raise UserError(
                f"{source}: prediction {number} (from 0) has a mask of size {part.get('size')}, "
                f"but image {row['image_id']} has {size} (height, width)."
            )
