"""Check predictions in COCO's result format."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.annotations import HUGE, Annotations, Image, id_fault
from robust_backbones.detection.data.segmentations import segmentation_fault

# Task -> key that its predictions must have, in addition to image, category and score.
TASKS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def tasks_of(rows: Any, truth: Annotations) -> list[str]:
    """Return the tasks that predictions can be evaluated on.

    Without predictions, the tasks are boxes, and masks if the ground truth has masks.
    """
    if rows and isinstance(rows, list):
        keys = {key for row in rows if isinstance(row, dict) for key in row}
        return [task for task, key in TASKS.items() if key in keys] or ["bbox"]
    return ["bbox", "segm"] if truth.has("segmentation") else ["bbox"]


def check_predictions(
    rows: Any, truth: Annotations, tasks: Iterable[str], source: str = "the predictions"
) -> None:
    """Check predictions in COCO's result format.

    Args:
        rows: predictions, a list of `{"image_id", "category_id", "score"}` with `bbox` ([x, y,
            width, height], pixels), `segmentation` or `keypoints`.
        truth: annotations of the dataset.
        tasks: keys of `TASKS`. The predictions must have the keys of these tasks.
        source: name of the predictions in error messages.

    Raises:
        UserError: a prediction is invalid. The message shows the first invalid prediction.
    """
    if not isinstance(rows, list):
        raise UserError(f"{source} must be a list of predictions, not a {type(rows).__name__}.")
    needed = ("image_id", "category_id", "score", *(TASKS[task] for task in tasks))
    images, classes = {image.id: image for image in truth.images}, set(truth.ids)
    if not _all_fit(rows, images, classes, set(needed)):
        for number, row in enumerate(rows):
            wrong = _fault(
                row, {"image_id": images, "category_id": truth.ids}, needed, truth.source
            )
            if wrong:
                raise UserError(f"{source}: predictions[{number}]{wrong}")
    if "bbox" in tasks:
        _check_boxes(rows, source)
    if "segm" in tasks:
        _check_masks(rows, images, source)


def _check_boxes(rows: list[dict], source: str) -> None:
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
                f"{source}: predictions[{number}] has bbox {box}. It must be [x, y, width, "
                "height], four finite numbers."
            )


def _number(value: Any) -> bool:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return real and abs(value) < HUGE  # also false for NaN


def _all_fit(rows: list, images: dict, classes: set, needed: set) -> bool:
    """Return whether `_fault` would accept all predictions, faster than by calling `_fault`."""
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


def _fault(row: Any, ids: dict[str, Collection], needed: tuple, source: str) -> str | None:
    if not isinstance(row, dict):
        return f" is {str(row)[:40]!r}. It must be an object with {', '.join(needed)}."
    missing = [key for key in needed if key not in row]
    if missing:
        return f" has no {missing[0]}. It must have {', '.join(needed)}."
    for key, known in ids.items():
        if wrong := id_fault(key, row[key], known, source):
            return f": {wrong}."
    if not _number(row["score"]):
        return f" has score {row['score']!r}. It must be a finite number."
    return None


def _check_masks(rows: list[dict], images: dict[int | str, Image], source: str) -> None:
    """Check the masks of predictions, and require that they have the size of their image.

    COCO evaluators accept masks of other sizes silently.
    """
    sizes = {key: [image.height, image.width] for key, image in images.items()}
    for number, row in enumerate(rows):
        part, size = row["segmentation"], sizes[row["image_id"]]
        counts = part.get("counts") if type(part) is dict else None
        if type(counts) is str and counts.isascii() and part.get("size") == size:
            continue  # fast path
        runs = isinstance(part, dict) and isinstance(part.get("counts"), (str, bytes, list))
        polygons = isinstance(part, list) and part
        if not runs and not polygons:
            raise UserError(
                f"{source}: predictions[{number}] has an invalid segmentation. It must be "
                "run lengths ({size, counts}) or a list of polygons."
            )
        wrong = segmentation_fault(part)
        if not wrong and polygons and any(len(p) < 6 or len(p) % 2 for p in part):
            wrong = "a polygon must have x and y of at least three points"
        if wrong:
            raise UserError(f"{source}: predictions[{number}]: {wrong}.")
        if runs and list(part["size"]) != size:
            raise UserError(
                f"{source}: predictions[{number}] has a mask of size {part.get('size')}, "
                f"but image {row['image_id']} has {size} (height, width)."
            )
