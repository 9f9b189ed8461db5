"""Compute COCO's metrics with hotcoco, which is much faster than pycocotools.

hotcoco returns exactly pycocotools' arrays for all data that pycocotools accepts.
`coco_files` rejects data for which the libraries differ. `benchmarks/coco_evaluation.py` compares
the two libraries.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import hotcoco
import numpy as np

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.coco_files import TASKS, Truth, check_predictions, no_garbage

ALL = 1e5**2  # largest object area in pycocotools, pixels
# Ranges of object areas in pixels, both ends included, by suffix of the metric.
AREAS = {"": (0, ALL), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, ALL)}
# Largest numbers of detections per image that are scored.
LIMITS = {"bbox": (1, 10, 100), "segm": (1, 10, 100), "keypoints": (20,)}
# Indices into the IoU thresholds .50:.05:.95, by suffix of the metric.
IOUS: dict[str, Any] = {"": slice(None), "50": 0, "75": 5}


@no_garbage()
def score(
    truth: Truth,
    rows: list[dict],
    task: str,
    edges: Sequence[float] = (),
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] = (),
    source: str = "the predictions",
) -> dict[str, float]:
    """Compute COCO's metrics of one task.

    Args:
        truth: checked annotations.
        rows: predictions in COCO's result format; see `check_predictions`. The area of a prediction
            with a mask is the mask's area, not the box's area, as in Detectron2.
        task: task to score, `"bbox"`, `"segm"` or `"keypoints"`.
        edges: edges of size buckets, pixels; `math.inf` is allowed. The size of an object is the
            square root of its area. Each two neighboring edges add a metric such as `AP 0..16`.
        image_ids: ids of the images to score; None for all images.
        sigmas: keypoint sigmas; empty for COCO's sigmas.
        source: name of the predictions for error messages.

    Returns:
        Percentages `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`, `ARm`,
        `ARl`, one AP for each bucket, and `AP-<class>` for each class. Keypoints have `AR20`
        instead of `AR1`, `AR10` and `AR100`, and they have no `APs` and `ARs`. Metrics without
        ground truth are NaN and excluded from means. Without predictions, all other metrics are 0.

    Raises:
        UserError: a prediction is invalid, or the annotations lack a key that the task requires.
    """
    check_predictions(rows, truth, (task,), source)
    ranges = dict(AREAS)
    if task == "keypoints":
        del ranges["s"]
    buckets = bucket_ranges(edges)
    areas = [*ranges.values(), *buckets.values()]
    engine = _engine(truth, rows, task, areas, image_ids, sigmas, source)
    try:
        engine.evaluate()
    except ValueError as error:
        raise UserError(f"{source}: not comparable with {truth.source} ({error}).") from None
    engine.accumulate()
    # The shape of precision is (IoUs, 101 recalls, classes, ranges, limits). Recall has the same
    # shape without the second dimension. Entries without ground truth are -1.
    assert engine.eval is not None
    precision = np.asarray(engine.eval["precision"])
    recall = np.asarray(engine.eval["recall"])
    metrics = {f"AP{name}": _mean(precision[at, ..., 0, -1]) for name, at in IOUS.items()}
    for index, name in enumerate(ranges):
        if name:
            metrics[f"AP{name}"] = _mean(precision[..., index, -1])
    for index, limit in enumerate(LIMITS[task]):
        metrics[f"AR{limit}"] = _mean(recall[..., 0, index])
    for index, name in enumerate(ranges):
        if name:
            metrics[f"AR{name}"] = _mean(recall[..., index, -1])
    for index, name in enumerate(buckets, len(ranges)):
        metrics[f"AP {name}"] = _mean(precision[..., index, -1])
    for index, name in enumerate(truth.classes.values()):
        metrics[f"AP-{name}"] = _mean(precision[:, :, index, 0, -1])
    return metrics


def bucket_ranges(edges: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Return the range of areas between each two neighboring edges, as `{"0..16": (0, 256)}`.

    Raises:
        UserError: there is only one edge, an edge is negative, or the edges do not increase.
    """
    edges = list(edges)
    rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
    if edges and (len(edges) < 2 or not rising or edges[0] < 0):
        raise UserError(
            f"The area edges are {edges}. They must be at least two increasing numbers of at least "
            "0, in pixels, such as 0 16 32 64 96 inf."
        )
    pairs = zip(edges, edges[1:], strict=False)
    return {f"{a:g}..{b:g}": (min(a * a, ALL), min(b * b, ALL)) for a, b in pairs}


# Keys of an annotation that a task needs, in addition to ids, `iscrowd` and area.
_TASK_KEYS = {
    "bbox": ("bbox",),
    "segm": ("bbox", "segmentation"),
    "keypoints": ("bbox", "keypoints", "num_keypoints"),
}


def _engine(
    truth: Truth,
    rows: list[dict],
    task: str,
    ranges: Sequence[tuple[float, float]],
    image_ids: Iterable[int] | None,
    sigmas: Sequence[float],
    source: str = "the predictions",
) -> hotcoco.COCOeval:
    _check_truth(truth, task)
    keys = ("id", "image_id", "category_id", "iscrowd", "area", *_TASK_KEYS[task])
    contents = {
        "images": list(truth.images.values()),
        "categories": [{"id": i, "name": str(i)} for i in range(1, len(truth.classes) + 1)],
        "annotations": [_select(row, keys) for row in truth.annotations],
    }
    categories = {key: index for index, key in enumerate(truth.classes, 1)}
    images = {key: image["id"] for key, image in truth.images.items()}
    key = TASKS[task]
    found = [
        {
            "image_id": images[row["image_id"]],
            "category_id": categories[row["category_id"]],
            "score": row["score"],
            key: row[key],
        }
        for row in rows
    ]
    if task == "keypoints":  # the area of the box, if given, is used to score keypoints
        for part, row in zip(found, rows, strict=True):
            part |= _select(row, ("bbox",))
    try:
        annotations = hotcoco.COCO(contents)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{truth.source}: the annotations are invalid ({error}).") from None
    try:
        engine = hotcoco.COCOeval(annotations, annotations.load_res(found), task)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{source}: the predictions are invalid ({error}).") from None
    engine.params.area_rng = [list(map(float, pair)) for pair in ranges]
    engine.params.area_rng_lbl = [str(i) for i in range(len(ranges))]
    engine.params.max_dets = list(LIMITS[task])
    if image_ids is not None:
        engine.params.img_ids = sorted(truth.images[i]["id"] for i in image_ids)
    if len(sigmas):
        engine.params.kpt_oks_sigmas = list(sigmas)
    return engine


def _select(row: dict, keys: Iterable[str]) -> dict:
    """Select the keys that hotcoco needs, because it would also spend time on other keys."""
    return {key: row[key] for key in keys if key in row}


def _check_truth(truth: Truth, task: str) -> None:
    """Reject annotations without the key of the task, and images without a size for masks.

    hotcoco would replace a missing mask by the box, and pycocotools does not accept it.
    """
    key = TASKS[task]
    lacking = sum(not row.get(key) for row in truth.annotations)
    if lacking:
        raise UserError(
            f"{truth.source}: {lacking} of {len(truth.annotations)} annotations have no {key}, "
            f"which task '{task}' requires."
        )
    if task == "segm" and any(not {"height", "width"} <= i.keys() for i in truth.images.values()):
        raise UserError(f"{truth.source}: an image has no height and width, which masks require.")


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values above -1, in percent, or NaN if no value is above -1."""
    values = values[values > -1]
    return float(100 * np.mean(values)) if values.size else float("nan")
