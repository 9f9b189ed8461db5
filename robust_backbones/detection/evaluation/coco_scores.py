"""Compute COCO's metrics with hotcoco, which is much faster than pycocotools.

hotcoco returns exactly pycocotools' arrays for all data that pycocotools accepts.
The readers and `coco_predictions` reject data for which the libraries differ.
`benchmarks/coco_evaluation.py` compares the two libraries.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import hotcoco
import numpy as np

from robust_backbones.core.errors import UserError, counted
from robust_backbones.detection.data.annotations import Annotations, Image, Object
from robust_backbones.detection.data.coco_annotations import no_garbage
from robust_backbones.detection.data.coco_predictions import TASKS, check_predictions
from robust_backbones.detection.data.segmentations import mask_area

# Kinds of problems that prevent scoring, and kinds that exclude only an annotation.
UNSCORABLE = ("no annotations", "no box", "duplicate id", "invalid iscrowd")
UNLISTED = ("unknown image", "unknown class")
ALL = 1e5**2  # largest object area in pycocotools, pixels
# Ranges of object areas in pixels, both ends included, by suffix of the metric.
AREAS = {"": (0, ALL), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, ALL)}
# Maximum numbers of detections per image and class that are scored.
LIMITS = {"bbox": (1, 10, 100), "segm": (1, 10, 100), "keypoints": (20,)}
# Indices into the IoU thresholds .50:.05:.95, by suffix of the metric.
IOUS: dict[str, Any] = {"": slice(None), "50": 0, "75": 5}


@no_garbage()
def score(
    truth: Annotations,
    rows: list[dict],
    task: str,
    edges: Sequence[float] = (),
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] = (),
    source: str = "the predictions",
    limit: int | None = None,
) -> dict[str, float]:
    """Compute COCO's metrics of one task.

    Args:
        truth: annotations of the dataset. Objects of unlisted classes are excluded.
        rows: predictions in COCO's result format; see `check_predictions`. The area of a prediction
            with a mask is the mask's area, not the box's area, as in Detectron2.
        task: task to score, `"bbox"`, `"segm"` or `"keypoints"`.
        edges: edges of size buckets, pixels; `math.inf` is allowed. The size of an object is the
            square root of its area. Each pair of neighboring edges adds a metric such as
            `AP 0..16`.
        image_ids: ids of the images to score; None for all images.
        sigmas: keypoint sigmas; empty for COCO's sigmas.
        source: name of the predictions for error messages.
        limit: largest number of detections per image and class that are scored; None for 100. As in
            Detectron2, it does not apply to keypoints, whose limit is 20.

    Returns:
        Percentages `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`, `ARm`,
        `ARl`, one AP for each bucket, and `AP-<class>` for each class. `AR100` is named after the
        limit, such as `AR300`. Keypoints have `AR20` instead of `AR1`, `AR10` and `AR100`, and they
        have no `APs` and `ARs`. Metrics without ground truth are NaN and excluded from means.
        Without predictions, all other metrics are 0.

    Raises:
        UserError: a prediction is invalid, or the annotations lack a key that the task requires.
    """
    _check_truth(truth, task)
    check_predictions(rows, truth, (task,), source)
    limits = detection_limits(task, limit)
    _warn_of_cuts(truth, rows, task, limits[-1], source)
    ranges = dict(AREAS)
    if task == "keypoints":
        del ranges["s"]
    buckets = bucket_ranges(edges)
    areas = [*ranges.values(), *buckets.values()]
    engine = _engine(truth, rows, task, areas, image_ids, sigmas, source, limits)
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
    for index, most in enumerate(limits):
        metrics[f"AR{most}"] = _mean(recall[..., 0, index])
    for index, name in enumerate(ranges):
        if name:
            metrics[f"AR{name}"] = _mean(recall[..., index, -1])
    for index, name in enumerate(buckets, len(ranges)):
        metrics[f"AP {name}"] = _mean(precision[..., index, -1])
    for index, name in enumerate(truth.classes):
        metrics[f"AP-{name}"] = _mean(precision[:, :, index, 0, -1])
    if reason := explain_nan(truth, task, image_ids):
        logging.getLogger(__name__).warning("%s, task '%s': %s", truth.source, task, reason)
    return metrics


def detection_limits(task: str, limit: int | None) -> tuple[int, ...]:
    """Return the numbers of detections per image and class that are scored, in ascending order."""
    own = LIMITS[task]
    if limit is None or task == "keypoints":
        return own
    return (*(smaller for smaller in own[:-1] if smaller < limit), limit)


def _warn_of_cuts(truth: Annotations, rows: list[dict], task: str, limit: int, source: str) -> None:
    """Warn if the limit excludes detections, or if an image has more objects of a class."""
    if task == "keypoints":
        return
    per_image = Counter(row["image_id"] for row in rows)
    many = {image for image, count in per_image.items() if count > limit}
    groups = Counter(
        (row["image_id"], row["category_id"]) for row in rows if row["image_id"] in many
    )
    crowded = [image for image in truth.images if len(image.objects) > limit]
    objects = Counter(
        (image.id, thing.class_index)
        for image in crowded
        for thing in image.objects
        if _is_scored(thing, task)
    )
    for counts, what, name in ((groups, "detections", source), (objects, "objects", truth.source)):
        cut = {key: count for key, count in counts.items() if count > limit}
        if cut:
            images = len({image for image, _ in cut})
            logging.getLogger(__name__).warning(
                "%s: %s more than %d %s of a class (up to %d), but only %d detections "
                "with the highest scores are scored. Increase --max-detections, or "
                "TEST.DETECTIONS_PER_IMAGE in training.",
                *(name, counted(images, "image has", "images have"), limit, what),
                *(max(cut.values()), limit),
            )


def _is_scored(thing: Object, task: str) -> bool:
    """Return whether the object counts as ground truth. Detections of other objects are ignored."""
    ignored = thing.class_index is None or thing.crowd or thing.difficult
    return not ignored and (task != "keypoints" or bool(thing.num_keypoints))


def explain_nan(
    truth: Annotations, task: str, image_ids: Iterable[int | str] | None = None
) -> str | None:
    """Return the reason why AP is NaN, or why the AP of classes is NaN; None if no AP is NaN.

    Args:
        truth: annotations of the dataset.
        task: task to score, a key of `TASKS`.
        image_ids: ids of the images to score; None for all images.
    """
    chosen = None if image_ids is None else set(image_ids)
    things = [
        thing
        for image in truth.images
        if chosen is None or image.id in chosen
        for thing in image.objects
        if thing.class_index is not None
    ]
    counts = Counter(thing.class_index for thing in things if _is_scored(thing, task))
    if counts:
        absent = [name for index, name in enumerate(truth.classes) if not counts[index]]
        more = f" and {len(absent) - 5} more" if absent[5:] else ""
        shown = f"{', '.join(absent[:5])}{more}"
        return f"AP is NaN for classes without objects to detect: {shown}" if absent else None
    if not things:
        images = counted(len(truth.images), "image", "images")
        return f"AP is NaN, because no object is annotated in {images}"
    if all(thing.crowd for thing in things):
        return f"AP is NaN, because all {len(things)} objects are crowds (iscrowd 1)"
    if all(thing.crowd or thing.difficult for thing in things):
        return f"AP is NaN, because all {len(things)} objects are difficult"
    return "AP is NaN, because no object has labeled keypoints"


def bucket_ranges(edges: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Return the range of areas between neighboring edges, as `{"0..16": (0, 256)}`.

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


def image_numbers(truth: Annotations) -> dict[int | str, int]:
    """Return `{image id: number from 1}`, in the order of the ids, which breaks ties."""
    return {key: number for number, key in enumerate(sorted(i.id for i in truth.images), 1)}


def coco_contents(truth: Annotations, task: str) -> dict:
    """Convert annotations to COCO's format, with only the keys that a task needs.

    Image ids are the output of `image_numbers`, and category ids are class indices from 1.
    Annotation ids start from 1, because pycocotools uses id 0 for "not found". Difficult objects
    become crowds. A missing area becomes the area of the mask, or of the box if there is no mask.
    """
    numbers, images, rows = image_numbers(truth), {}, []
    for image in truth.images:
        number = numbers[image.id]
        images[number] = {"id": number, "height": image.height, "width": image.width}
        for thing in image.objects:
            if thing.class_index is None:
                continue
            assert thing.box is not None  # `_check_truth` checks this
            row = {
                "id": len(rows) + 1,
                "image_id": number,
                "category_id": thing.class_index + 1,
                "bbox": thing.coco_box(),
                "area": _area(thing, image, truth) if thing.area is None else thing.area,
                "iscrowd": int(thing.crowd or thing.difficult),
            }
            if task == "segm":
                row["segmentation"] = thing.segmentation
            elif task == "keypoints":
                row["keypoints"] = thing.keypoints
                row["num_keypoints"] = thing.num_keypoints or 0
            rows.append(row)
    return {
        "images": [images[number] for number in sorted(images)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, len(truth.classes) + 1)],
        "annotations": rows,
    }


def _area(thing: Object, image: Image, truth: Annotations) -> float:
    if not thing.segmentation:
        _, _, width, height = thing.coco_box()
        return width * height
    if type(image.height) is not int or type(image.width) is not int or not image.height:
        raise UserError(
            f"{truth.source}: {thing.label(0, truth.classes)} has a mask, but its image has no "
            "height and width."
        )
    return mask_area(thing.segmentation, image.height, image.width)


def _engine(
    truth: Annotations,
    rows: list[dict],
    task: str,
    ranges: Collection[tuple[float, float]],
    image_ids: Iterable[int] | None,
    sigmas: Sequence[float],
    source: str = "the predictions",
    limits: Sequence[int] = (),
) -> hotcoco.COCOeval:
    contents, images = coco_contents(truth, task), image_numbers(truth)
    categories = {key: index for index, key in enumerate(truth.ids, 1)}
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
            part |= {"bbox": row["bbox"]} if "bbox" in row else {}
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
    engine.params.max_dets = list(limits or LIMITS[task])
    if image_ids is not None:
        engine.params.img_ids = sorted(images[i] for i in image_ids)
    if len(sigmas):
        engine.params.kpt_oks_sigmas = list(sigmas)
    return engine


def _check_truth(truth: Annotations, task: str) -> None:
    """Reject annotations that cannot be scored.

    hotcoco would replace a missing mask by the box, and pycocotools does not accept it.
    """
    stop = next((problem for problem in truth.problems if problem.kind in UNSCORABLE), None)
    if stop:
        where = f"{stop.image}: " if stop.image else ""
        raise UserError(f"{truth.source}: {where}{stop.text}. Fix the annotations.")
    key = {"bbox": "box"}.get(task, TASKS[task])
    things = [
        thing for image in truth.images for thing in image.objects if thing.class_index is not None
    ]
    excluded = [problem for problem in truth.problems if problem.kind in UNLISTED]
    if excluded and not things:
        raise UserError(
            f"{truth.source}: no annotation has a listed image and category. The first: "
            f"{excluded[0].text}. Fix the ids."
        )
    lacking = sum(not getattr(thing, key) for thing in things)
    if lacking:
        invalid = next((thing.mask_fault for thing in things if thing.mask_fault), None)
        first = f" The first invalid mask: {invalid}." if invalid and task == "segm" else ""
        raise UserError(
            f"{truth.source}: {lacking} of {len(things)} annotations have no valid {TASKS[task]}, "
            f"which task '{task}' requires.{first}"
        )
    if task == "segm" and not all(image.height and image.width for image in truth.images):
        raise UserError(
            f"{truth.source}: an image has no height and width. Add them, or choose --tasks bbox."
        )


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values above -1, in percent, or NaN if no value is above -1."""
    values = values[values > -1]
    return float(100 * np.mean(values)) if values.size else float("nan")
