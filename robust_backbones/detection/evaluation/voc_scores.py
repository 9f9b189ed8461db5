"""Pascal VOC's average precision, by both of its rules, for all overlaps at once.

Everett, the VOC development kit (2007 to 2012): a detection counts as right if the object of its
class and image that it overlaps most (intersection over union of boxes that include their last
pixel) has more overlap than the threshold and was not found by a better-scored detection;
detections of "difficult" objects count neither way.
"""

from dataclasses import dataclass

import numpy as np

IOUS = np.arange(50, 100, 5) / 100


@dataclass(frozen=True)
class Boxes:
    """Objects, or detections: `(n,)` of each but the boxes.

    Attributes:
        image: number of the image.
        label: number of the class.
        box: `(n, 4)` xmin, ymin, xmax, ymax; pixels counted from 1, the last one included.
        weight: of a detection its score; of an object 1, or 0 if it is difficult.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    weight: np.ndarray

    def only(self, keep: np.ndarray) -> "Boxes":
        """Those chosen by an index or a mask."""
        return Boxes(self.image[keep], self.label[keep], self.box[keep], self.weight[keep])


def score(objects: Boxes, detections: Boxes, classes: list[str], year: int) -> dict[str, float]:
    """VOC's metrics.

    Args:
        year: 2007 has the 11-point rule, every other year the area under the curve.

    Returns:
        Percent: `AP` (mean over overlaps of .50:.05:.95), `AP50`, `AP75` by the rule of the year;
        `AP_07`, `AP50_07`, ... by the 11 points, `AP_area`, ... by the area; then `AP-<class>`,
        `AP50-<class>` by the rule of the year. A class without objects, difficult ones apart, is
        NaN and left out of the means.
    """
    found = {rule: np.full((len(classes), len(IOUS)), np.nan) for rule in RULES}
    for label in range(len(classes)):
        truth = objects.only(objects.label == label)
        if truth.weight.any():
            curves = precision_recall(truth, detections.only(detections.label == label))
            for rule, average_precision in RULES.items():
                found[rule][label] = average_precision(*curves)
    own = "07" if int(year) == 2007 else "area"
    metrics = {}
    rules = {"": own} | {f"_{rule}": rule for rule in RULES}
    for suffix, rule in rules.items():
        for name, columns in METRICS.items():
            metrics[f"{name}{suffix}"] = _mean(found[rule][:, columns])
    for label, class_name in enumerate(classes):
        for name in ("AP", "AP50"):
            metrics[f"{name}-{class_name}"] = _mean(found[own][label, METRICS[name]])
    return metrics


METRICS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # columns of IOUS


def _mean(values: np.ndarray) -> float:
    """Percent, NaN apart; NaN if that is all."""
    values = values[~np.isnan(values)]
    return float(100 * values.mean()) if values.size else float("nan")


def precision_recall(objects: Boxes, detections: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, each `(overlaps, detections)`, of one class, best score first.

    Equal scores stay in the order given.
    """
    detections = detections.only(np.argsort(-detections.weight, kind="stable"))
    overlap, best = _best_overlap(objects, detections)
    hit = overlap[None] > IOUS[:, None]
    counts = objects.weight[best] > 0 if len(objects.image) else np.zeros(0, bool)
    right = np.zeros(hit.shape, bool)
    for row, hits in zip(right, hit, strict=True):
        places = np.flatnonzero(hits & counts)
        _, first = np.unique(best[places], return_index=True)  # the best-scored of each object
        row[places[first]] = True
    wrong = ~hit | (counts & ~right)
    right, wrong = np.cumsum(right, axis=1), np.cumsum(wrong, axis=1)
    recall = right / objects.weight.sum()
    return right / np.maximum(right + wrong, np.finfo(float).eps), recall


def _best_overlap(objects: Boxes, detections: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection, the largest overlap with an object of its image, and which (the first).

    -1 and object 0 where the image has none.
    """
    order = np.argsort(objects.image, kind="stable")
    images = objects.image[order]
    start, end = (np.searchsorted(images, detections.image, side) for side in ("left", "right"))
    counts = end - start
    offsets = np.cumsum(counts) - counts
    place = np.arange(counts.sum()) - np.repeat(offsets - start, counts)
    which = np.repeat(np.arange(len(counts)), counts)  # the detection of each pair
    overlap = _overlap(objects.box[order][place], detections.box[which])
    best = np.zeros(len(counts), int)
    largest = np.full(len(counts), -1.0)
    some = counts > 0
    if some.any():
        largest[some] = np.maximum.reduceat(overlap, offsets[some])
        equal = np.flatnonzero(overlap == largest[which])
        _, first = np.unique(which[equal], return_index=True)
        best[some] = order[place[equal[first]]]
    return largest, best


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of `(n, 4)` boxes, pair by pair."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = [(box[:, 2:] - box[:, :2] + 1).prod(axis=1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def eleven_points(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """VOC 2007: mean of the best precision at recalls from 0, .1, ... 1 on; `(overlaps,)`."""
    best = _envelope(precision)
    reached = [
        np.max(best, axis=1, where=recall >= point, initial=0) for point in np.arange(0, 1.1, 0.1)
    ]
    return np.mean(reached, axis=0)


def area_under_curve(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """VOC 2010 and later: area under the falling envelope of precision; `(overlaps,)`."""
    steps = np.diff(recall, axis=1, prepend=0)
    return (steps * _envelope(precision)).sum(axis=1)


def _envelope(precision: np.ndarray) -> np.ndarray:
    """The best precision at this recall or a higher one."""
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


RULES = {"07": eleven_points, "area": area_under_curve}
