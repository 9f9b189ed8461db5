"""COCO annotations and predictions: read and checked, under ids that every engine takes."""

import contextlib
import gc
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import masks

# Task -> what a prediction must have for it, besides image, category and score.
TASKS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}

HUGE = 1e15  # what no coordinate, area or score reaches


@dataclass(frozen=True)
class Truth:
    """Annotations of a data set, checked.

    Attributes:
        source: where they are from, for messages.
        images: `{id: {"id", "height", "width"}}`; the inner id is the place in sorted order, from
            1. The outer one may be a string (VOC).
        classes: `{category id: name}`, sorted by id; no name is there twice.
        annotations: COCO rows whose ids count from 1 (an id 0 means "not found" to pycocotools),
            `image_id` as in `images`, `category_id` the place in `classes`, from 1.
    """

    source: str
    images: dict
    classes: dict
    annotations: list[dict]

    def has(self, key: str) -> bool:
        """Whether any annotation has `key`, a value of `TASKS`."""
        return any(row.get(key) for row in self.annotations)


def load_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a JSON file.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from None


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """While many small objects are made, the collector would search all of them over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_garbage()
def truth(contents: dict, source: str) -> Truth:
    """Check the contents of an annotation file (COCO's format for instances).

    `iscrowd` is 0 where it is missing, and `area` that of the mask or, without one, of the box.
    Annotations of images or categories that the file does not list are left out, as pycocotools
    does, and counted in a warning.

    Raises:
        UserError: a part is missing, an id is there twice, or a box or polygon is none.
    """
    parts = ("images", "categories", "annotations")
    if not isinstance(contents, dict) or not all(isinstance(contents.get(p), list) for p in parts):
        raise UserError(f"{source} must be an object with the lists {', '.join(parts)}.")
    images = _places(contents["images"], f"image of {source}")
    categories = _places(contents["categories"], f"category of {source}")
    sizes = {}
    for row in contents["images"]:
        sizes[row["id"]] = {key: row[key] for key in ("height", "width") if key in row}
    rows, left_out = [], 0
    for row in contents["annotations"]:
        if _listed(row, images, categories):
            rows.append(row)
        else:
            left_out += 1
    if left_out:
        logging.getLogger(__name__).warning(
            "%s: %d annotations of images or categories that it does not list are left out",
            source,
            left_out,
        )
    _finite_boxes(rows, f"annotation of {source}")
    ordered = {key: {"id": place} | sizes[key] for key, place in images.items()}
    checked = []
    for number, row in enumerate(rows, 1):
        image, area = ordered[row["image_id"]], row.get("area")
        _check_polygons(row, source)
        if not (type(area) is float and abs(area) < HUGE or _number(area)):  # the fast way first
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
    except (TypeError, KeyError):  # no object, or an id that is a list
        return False


def unique(names: dict) -> dict:
    """`{id: name}`, the id added to names that are there twice."""
    counts = Counter(names.values())
    return {key: f"{name} (id {key})" if counts[name] > 1 else name for key, name in names.items()}


def _places(rows: list, what: str) -> dict:
    """`{id: place in sorted order, from 1}`, sorted: pycocotools' order, which decides ties."""
    try:
        ids = [row["id"] for row in rows]
        ordered, counts = sorted(ids), Counter(ids)
    except (TypeError, KeyError):
        raise UserError(f"every {what} needs an id, all numbers or all text.") from None
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"id {twice[0]} is that of more than one {what}; ids must differ.")
    return {key: place for place, key in enumerate(ordered, 1)}


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
                f"{what}, number {number}, has bbox {box}; it must be [x, y, width, height], four "
                "finite numbers."
            )


def _number(value: Any) -> bool:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return real and abs(value) < HUGE  # false for NaN, too


def _check_polygons(row: dict, source: str) -> None:
    part = row.get("segmentation")
    if part and (wrong := masks.fault(part)):
        raise UserError(f"annotation {row.get('id')} of {source}: {wrong}.")
    if isinstance(part, list):
        for points in part:
            if len(points) < 6 or len(points) % 2:
                raise UserError(
                    f"annotation {row.get('id')} of {source} has a polygon that is none: it needs "
                    "x and y of at least three points."
                )


def _area(row: dict, image: dict, source: str) -> float:
    """Pixels of an annotation's polygons or run lengths; without these, of its box."""
    part, height, width = row.get("segmentation"), image.get("height"), image.get("width")
    if not part:
        return row["bbox"][2] * row["bbox"][3]
    if type(height) is not int or type(width) is not int:
        raise UserError(
            f"annotation {row.get('id')} of {source} has a mask, but its image has no "
            "height and width."
        )
    if isinstance(part, dict) and not isinstance(part["counts"], list):
        return float(coco_mask.area(part))
    codes = coco_mask.frPyObjects(part, height, width)
    return float(coco_mask.area(coco_mask.merge(codes) if isinstance(codes, list) else codes))


def tasks_of(rows: Any, truth: Truth) -> list[str]:
    """Tasks that predictions are of; of none: boxes, and masks if the truth has any."""
    if rows and isinstance(rows, list):
        keys = {key for row in rows if isinstance(row, dict) for key in row}
        return [task for task, key in TASKS.items() if key in keys] or ["bbox"]
    return [t for t in ("bbox", "segm") if t == "bbox" or truth.has(TASKS[t])]


def check_predictions(
    rows: Any, truth: Truth, tasks: Iterable[str], source: str = "the predictions"
) -> None:
    """Check predictions in COCO's result format: a list of `{"image_id", "category_id", "score"}`
    with `bbox` ([x, y, width, height], pixels), `segmentation` or `keypoints`, as `tasks` need.

    Raises:
        UserError: names the first prediction that is wrong, and what is allowed.
    """
    if not isinstance(rows, list):
        raise UserError(f"{source} must be a list of predictions; found {type(rows).__name__}.")
    needed = ("image_id", "category_id", "score", *(TASKS[task] for task in tasks))
    if not _all_fit(rows, truth, set(needed)):
        for number, row in enumerate(rows):
            wrong = _wrong(row, truth, needed)
            if wrong:
                raise UserError(f"{source}: prediction {number} (from 0) {wrong}")
    if "bbox" in tasks:
        _finite_boxes(rows, f"prediction of {source}")
    if "segm" in tasks:
        _check_masks(rows, truth, source)


def _all_fit(rows: list, truth: Truth, needed: set) -> bool:
    """Whether `_wrong` has nothing to find, in a fraction of its time."""
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
    """Not texts or lists in their place, which NumPy would take."""
    return values.dtype.kind in "fiu" and values.shape == shape


def _wrong(row: Any, truth: Truth, needed: tuple) -> str | None:
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}; it must be an object with {', '.join(needed)}."
    missing = [key for key in needed if key not in row]
    if missing:
        return f"has no {missing[0]}; it must have {', '.join(needed)}."
    for key, known in (("image_id", truth.images), ("category_id", truth.classes)):
        try:
            if row[key] in known:
                continue
        except TypeError:  # a list, say
            pass
        ids = list(known)
        shown = ", ".join(map(str, ids[:3])) + (f" ... {ids[-1]}" if ids[3:] else "")
        return f"has {key} {row[key]!r}, which {truth.source} does not have ({shown})."
    if not _number(row["score"]):
        return f"has score {row['score']!r}; it must be a finite number."
    return None


def _check_masks(rows: list[dict], truth: Truth, source: str) -> None:
    """Run lengths of another image size are compared pixel by pixel all the same: refuse them."""
    sizes = {key: [i.get("height"), i.get("width")] for key, i in truth.images.items()}
    for number, row in enumerate(rows):
        part, size = row["segmentation"], sizes[row["image_id"]]
        counts = part.get("counts") if type(part) is dict else None
        if type(counts) is str and counts.isascii() and part.get("size") == size:
            continue  # the fast way first
        runs = isinstance(part, dict) and isinstance(part.get("counts"), (str, bytes, list))
        polygons = isinstance(part, list) and part
        if not runs and not polygons:
            raise UserError(
                f"{source}: prediction {number} (from 0) has a segmentation that is none; it must "
                "be run lengths ({size, counts}) or a list of polygons."
            )
        wrong = masks.fault(part)
        if not wrong and polygons and any(len(p) < 6 or len(p) % 2 for p in part):
            wrong = "a polygon needs x and y of at least three points"
        if wrong:
            raise UserError(f"{source}: prediction {number} (from 0): {wrong}.")
        if runs and list(part["size"]) != size:
            raise UserError(
                f"{source}: prediction {number} (from 0) has a mask of size {part.get('size')}, "
                f"but image {row['image_id']} has {size} (height, width)."
            )
