"""Evaluate a registered dataset by the rules of Pascal VOC (any year) and COCO, with any classes.

The rules follow the VOC development kit (Everingham et al., 2007 to 2012). Each detection is
compared with the object of its class and image that has the largest overlap. The overlap is the
intersection over union of boxes that include their last pixel. A detection is correct if the
overlap exceeds the threshold and no detection with a higher score was matched to the object.
Detections of "difficult" objects are ignored. AP is computed by the 11-point rule and as the area
under the curve, for all thresholds at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from robust_backbones.detection.data.annotations import Annotations, Object
from robust_backbones.detection.data.catalog import scored_annotations
from robust_backbones.detection.evaluation import coco_scores
from robust_backbones.detection.evaluation.coco import gather, save_predictions
from robust_backbones.detection.evaluation.tables import log_metrics

IOUS = np.arange(50, 100, 5) / 100


@dataclass(frozen=True)
class Boxes:
    """Boxes of objects or of detections.

    Attributes:
        image: index of the image, `(n,)` int.
        label: index of the class, `(n,)` int.
        box: corners xmin, ymin, xmax, ymax, `(n, 4)` float, in pixels counted from 1. The last
            pixel belongs to the box.
        weight: score of a detection, `(n,)` float; 1 for an object, 0 for a difficult object.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    weight: np.ndarray

    def only(self, keep: np.ndarray) -> "Boxes":
        """Select boxes by index or mask."""
        return Boxes(self.image[keep], self.label[keep], self.box[keep], self.weight[keep])


class VocEvaluator(DatasetEvaluator):
    """VOC evaluator with the metrics of Detectron2's `PascalVOCDetectionEvaluator` and COCO.

    In contrast to Detectron2, this class supports any list of classes and any year. It does not
    round scores to 3 decimals and boxes to 1 decimal. Classes without objects are excluded from the
    mean, which is NaN in Detectron2. For the metrics, see `score`.

    Args:
        name: name of the registered dataset. Its metadata must have `dirname`, `split` and
            `thing_classes`; `year` is 2012 by default.
        folder: folder for `coco_instances_results.json`, with `category_id` from 0; None to write
            nothing.
        edges, limit: size buckets and limit of detections; see `score`.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path | None = None,
        edges: Sequence[float] = (),
        limit: int | None = None,
    ):
        self._name, self._folder, self._edges, self._limit = name, folder, edges, limit
        self.reset()

    def reset(self) -> None:
        """Discard all predictions."""
        self._rows = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add a model's outputs, with key "instances", for inputs with `image_id`."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            for field in ("pred_masks", "pred_keypoints"):  # only boxes are scored
                if instances.has(field):
                    instances.remove(field)
            self._rows += instances_to_coco_json(instances, image["image_id"])

    def evaluate(self) -> dict:
        """Return the metrics `{"bbox": {metric: percent}}`, or `{}` outside the main process."""
        gathered = gather(self._rows)
        if gathered is None:
            return {}
        rows = [row for part in gathered for row in part]
        if self._folder:
            save_predictions(rows, self._folder)
        truth = scored_annotations(self._name)
        results = {"bbox": score(truth, rows, year_of(self._name), self._edges, limit=self._limit)}
        log_metrics(results)
        return results


def year_of(name: str) -> int:
    """Return the year of VOC in the metadata of a registered dataset; 2012 if absent."""
    return int(MetadataCatalog.get(name).get("year") or 2012)


def score(
    truth: Annotations,
    rows: list[dict],
    year: int,
    edges: Sequence[float] = (),
    source: str = "the predictions",
    limit: int | None = None,
) -> dict:
    """Compute VOC's and COCO's metrics of a VOC dataset.

    Args:
        truth: annotations of the dataset. Objects of unlisted classes are excluded, as in VOC.
        rows: predictions in COCO's result format. `image_id` is the name of the image file without
            its suffix, and `category_id` is the class index.
        year: year of VOC; see `voc_metrics`.
        edges: edges of size buckets, pixels; see `coco_scores.score`.
        source: name of the predictions for error messages.
        limit: limit of COCO's metrics; see `coco_scores.score`. VOC's metrics have no limit.

    Returns:
        Percentages: the metrics of `voc_metrics`, and the metrics of `coco_scores.score` over all
        classes, with names such as `AP_coco`. COCO's metrics treat difficult objects as crowds:
        they ignore detections that are mostly inside a crowd.

    Raises:
        UserError: an annotation cannot be scored, or a prediction is invalid.
    """
    coco = coco_scores.score(truth, rows, "bbox", edges, source=source, limit=limit)
    numbers = coco_scores.image_numbers(truth)
    objects = [
        (numbers[image.id], thing.class_index, *thing.coco_box(), not _is_ignored(thing))
        for image in truth.images
        for thing in image.objects
        if thing.class_index is not None
    ]
    detections = [
        (numbers[row["image_id"]], row["category_id"], *row["bbox"], row["score"]) for row in rows
    ]
    metrics = voc_metrics(_boxes(objects), _boxes(detections), truth.classes, year)
    return metrics | {f"{key}_coco": value for key, value in coco.items() if "-" not in key}


def _is_ignored(thing: Object) -> bool:
    return thing.crowd or thing.difficult


def _boxes(rows: list[tuple]) -> Boxes:
    """Convert rows (image, label, x, y, width, height, weight) from COCO's pixel coordinates."""
    table = np.array(rows, float).reshape(len(rows), 7)
    corner, size = table[:, 2:4], table[:, 4:6]
    return Boxes(
        image=table[:, 0].astype(int),
        label=table[:, 1].astype(int),
        box=np.concatenate([corner + 1, corner + size], axis=1),
        weight=table[:, 6],
    )


def voc_metrics(
    objects: Boxes, detections: Boxes, classes: list[str], year: int
) -> dict[str, float]:
    """Compute VOC's metrics.

    Args:
        objects: ground truth.
        detections: predictions.
        classes: class names.
        year: year of VOC, which selects the rule: 11 points for 2007, the area under the curve for
            all other years.

    Returns:
        Percentages. `AP` (mean over IoU .50:.05:.95), `AP50`, `AP75`, and `AP-<class>` and
        `AP50-<class>` for each class follow the rule of the year. `AP_07`, `AP50_07` and `AP75_07`
        follow the 11-point rule. `AP_area`, `AP50_area` and `AP75_area` are areas under the curve.
        The AP of a class is NaN if the class has no objects, or only difficult objects. NaN is
        excluded from the means.
    """
    found = {rule: np.full((len(classes), len(IOUS)), np.nan) for rule in RULES}
    for label in range(len(classes)):
        truth = objects.only(objects.label == label)
        if truth.weight.any():
            curves = precision_recall(truth, detections.only(detections.label == label))
            for rule, average_precision in RULES.items():
                found[rule][label] = average_precision(*curves)
    own = "07" if year == 2007 else "area"
    metrics = {}
    rules = {"": own} | {f"_{rule}": rule for rule in RULES}
    for suffix, rule in rules.items():
        for name, columns in METRICS.items():
            metrics[f"{name}{suffix}"] = _mean(found[rule][:, columns])
    for label, class_name in enumerate(classes):
        for name in ("AP", "AP50"):
            metrics[f"{name}-{class_name}"] = _mean(found[own][label, METRICS[name]])
    return metrics


METRICS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # indices into IOUS


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, in percent, or NaN if all values are NaN."""
    values = values[~np.isnan(values)]
    return float(100 * values.mean()) if values.size else float("nan")


def precision_recall(objects: Boxes, detections: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision and recall of one class, each `(IoUs, detections)`.

    Detections are sorted by descending score. Detections with equal scores keep their order.
    """
    detections = detections.only(np.argsort(-detections.weight, kind="stable"))
    overlap, best = _best_overlap(objects, detections)
    hit = overlap[None] > IOUS[:, None]
    counts = objects.weight[best] > 0 if len(objects.image) else np.zeros(0, bool)
    right = np.zeros(hit.shape, bool)
    for row, hits in zip(right, hit, strict=True):
        indices = np.flatnonzero(hits & counts)
        _, first = np.unique(best[indices], return_index=True)  # best detection per object
        row[indices[first]] = True
    wrong = ~hit | (counts & ~right)
    right, wrong = np.cumsum(right, axis=1), np.cumsum(wrong, axis=1)
    recall = right / objects.weight.sum()
    return right / np.maximum(right + wrong, np.finfo(float).eps), recall


def _best_overlap(objects: Boxes, detections: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Find, for each detection, the object of the same image with the largest overlap.

    Returns:
        The largest overlap of each detection, `(n,)` float, and the index of the first object with
        this overlap, `(n,)` int. The values are -1 and 0 if the image has no objects.
    """
    order = np.argsort(objects.image, kind="stable")
    images = objects.image[order]
    start, end = (np.searchsorted(images, detections.image, side) for side in ("left", "right"))
    counts = end - start
    offsets = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(offsets - start, counts)
    which = np.repeat(np.arange(len(counts)), counts)  # index of each pair's detection
    overlap = _overlap(objects.box[order][index], detections.box[which])
    best = np.zeros(len(counts), int)
    largest = np.full(len(counts), -1.0)
    some = counts > 0
    if some.any():
        largest[some] = np.maximum.reduceat(overlap, offsets[some])
        equal = np.flatnonzero(overlap == largest[which])
        _, first = np.unique(which[equal], return_index=True)
        best[some] = order[index[equal[first]]]
    return largest, best


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of pairs of boxes, each `(n, 4)`."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = [(box[:, 2:] - box[:, :2] + 1).prod(axis=1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def eleven_points(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Compute AP as in VOC 2007, `(IoUs,)`.

    AP is the mean of the precision envelope at recalls 0, .1, ..., 1.
    """
    best = _envelope(precision)
    reached = [
        np.max(best, axis=1, where=recall >= point, initial=0) for point in np.arange(0, 1.1, 0.1)
    ]
    return np.mean(reached, axis=0)


def area_under_curve(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Compute AP as in VOC 2010 and later, `(IoUs,)`: the area under the precision envelope."""
    steps = np.diff(recall, axis=1, prepend=0)
    return (steps * _envelope(precision)).sum(axis=1)


def _envelope(precision: np.ndarray) -> np.ndarray:
    """Replace each precision by the highest precision at the same or a higher recall."""
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


RULES = {"07": eleven_points, "area": area_under_curve}
