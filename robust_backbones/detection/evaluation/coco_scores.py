"""COCO's metrics of predictions, through hotcoco: pycocotools' numbers in a fraction of its time.

`benchmarks/coco_evaluation.py` compares the engines. hotcoco's arrays are pycocotools' to the last
bit wherever pycocotools accepts the data; what it would score otherwise, or refuses where hotcoco
guesses, is refused by `coco_files` before.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import hotcoco
import numpy as np

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.coco_files import TASKS, Truth, check_predictions, no_garbage

ALL = 1e5**2  # pycocotools' largest area, pixels
# Suffix of a metric -> range of areas, both ends included, pixels.
AREAS = {"": (0, ALL), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, ALL)}
LIMITS = {"bbox": (1, 10, 100), "segm": (1, 10, 100), "keypoints": (20,)}  # detections per image
IOUS: dict[str, Any] = {"": slice(None), "50": 0, "75": 5}  # of .50:.05:.95


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
    """COCO's metrics of one task.

    Args:
        rows: predictions in COCO's result format, see `check_predictions`. The area of a mask is
            its own, not its box's, as in Detectron2.
        task: `"bbox"`, `"segm"` or `"keypoints"`.
        edges: AP is also given for objects whose side (the root of the area) lies between
            neighbours of these numbers, pixels: `AP 0..16`. `math.inf` is allowed.
        image_ids: score these images only; None for all.
        sigmas: of keypoints; COCO's where empty.

    Returns:
        Percent: `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`, `ARm`,
        `ARl` (keypoints: no `s`, and `AR20`), one for each pair of `edges`, and `AP-<class>`. What
        has no ground truth is NaN and left out of means; without predictions the rest is 0.

    Raises:
        UserError: a prediction is not usable, or the annotations lack what the task compares.
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
        raise UserError(f"{source} cannot be scored with {truth.source}: {error}.") from None
    engine.accumulate()
    # (IoUs, 101 recalls, classes, ranges, limits) and without recalls; -1 where nothing is.
    assert engine.eval is not None
    precision = np.asarray(engine.eval["precision"])
    recall = np.asarray(engine.eval["recall"])
    metrics = {f"AP{name}": _mean(precision[at, ..., 0, -1]) for name, at in IOUS.items()}
    for place, name in enumerate(ranges):
        if name:
            metrics[f"AP{name}"] = _mean(precision[..., place, -1])
    for place, limit in enumerate(LIMITS[task]):
        metrics[f"AR{limit}"] = _mean(recall[..., 0, place])
    for place, name in enumerate(ranges):
        if name:
            metrics[f"AR{name}"] = _mean(recall[..., place, -1])
    for place, name in enumerate(buckets, len(ranges)):
        metrics[f"AP {name}"] = _mean(precision[..., place, -1])
    for place, name in enumerate(truth.classes.values()):
        metrics[f"AP-{name}"] = _mean(precision[:, :, place, 0, -1])
    return metrics


def bucket_ranges(edges: Sequence[float]) -> dict[str, tuple[float, float]]:
    """`{"0..16": (0, 256), ...}` of the edges 0, 16, ...

    Raises:
        UserError: fewer than two, or not increasing from 0 or more.
    """
    edges = list(edges)
    rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
    if edges and (len(edges) < 2 or not rising or edges[0] < 0):
        raise UserError(
            f"area edges {edges} must be at least two numbers that increase from 0 or more, in "
            "pixels, such as 0 16 32 64 96 inf."
        )
    pairs = zip(edges, edges[1:], strict=False)
    return {f"{a:g}..{b:g}": (min(a * a, ALL), min(b * b, ALL)) for a, b in pairs}


# What an engine reads of an annotation, besides ids, score and area.
_READS = {
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
    keys = ("id", "image_id", "category_id", "iscrowd", "area", *_READS[task])
    contents = {
        "images": list(truth.images.values()),
        "categories": [{"id": i, "name": str(i)} for i in range(1, len(truth.classes) + 1)],
        "annotations": [_part(row, keys) for row in truth.annotations],
    }
    places = {key: place for place, key in enumerate(truth.classes, 1)}
    images = {key: image["id"] for key, image in truth.images.items()}
    key = TASKS[task]
    found = [
        {
            "image_id": images[row["image_id"]],
            "category_id": places[row["category_id"]],
            "score": row["score"],
            key: row[key],
        }
        for row in rows
    ]
    if task == "keypoints":  # whose area is that of the box, where there is one
        for part, row in zip(found, rows, strict=True):
            part |= _part(row, ("bbox",))
    try:
        annotations = hotcoco.COCO(contents)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{truth.source} cannot be scored with: {error}.") from None
    try:
        engine = hotcoco.COCOeval(annotations, annotations.load_res(found), task)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{source} cannot be scored: {error}.") from None
    engine.params.area_rng = [list(map(float, pair)) for pair in ranges]
    engine.params.area_rng_lbl = [str(i) for i in range(len(ranges))]
    engine.params.max_dets = list(LIMITS[task])
    if image_ids is not None:
        engine.params.img_ids = sorted(truth.images[i]["id"] for i in image_ids)
    if len(sigmas):
        engine.params.kpt_oks_sigmas = list(sigmas)
    return engine


def _part(row: dict, keys: Iterable[str]) -> dict:
    """What an engine does not read costs it time all the same."""
    return {key: row[key] for key in keys if key in row}


def _check_truth(truth: Truth, task: str) -> None:
    """hotcoco takes a box for a mask that is missing; pycocotools stops."""
    key = TASKS[task]
    lacking = sum(not row.get(key) for row in truth.annotations)
    if lacking:
        raise UserError(
            f"{lacking} of {len(truth.annotations)} annotations of {truth.source} have no {key}, "
            f"which task '{task}' needs."
        )
    if task == "segm" and any(not {"height", "width"} <= i.keys() for i in truth.images.values()):
        raise UserError(f"an image of {truth.source} has no height and width; masks need them.")


def _mean(values: np.ndarray) -> float:
    """Percent; NaN where nothing is."""
    values = values[values > -1]
    return float(100 * np.mean(values)) if values.size else float("nan")
