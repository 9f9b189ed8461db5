"""Classify a detector's errors: assign one type to each prediction and object of an image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

FOUND_IOU = 0.5  # smallest overlap at which an object counts as found
TOUCHED_IOU = 0.1  # largest overlap at which a prediction counts as background


@dataclass(frozen=True)
class ErrorType:
    """Type of a prediction or an object, such as "duplicate" or "missed".

    Attributes:
        meaning: explanation of the type, as shown on the page.
        color: hexadecimal color from the palette of Okabe and Ito (2008), which is distinguishable
            with any color vision.
        error: whether the type counts as an error.
    """

    meaning: str
    color: str
    error: bool = True


KINDS = {
    "right": ErrorType(f"correct class, IoU of at least {FOUND_IOU}", "#009E73", error=False),
    "wrong class": ErrorType(
        f"IoU of at least {FOUND_IOU} with an object of another class", "#D55E00"
    ),
    "poor box": ErrorType(f"correct class, IoU from {TOUCHED_IOU} to {FOUND_IOU}", "#56B4E9"),
    "wrong class and box": ErrorType(
        f"IoU from {TOUCHED_IOU} to {FOUND_IOU} with an object of another class", "#CC79A7"
    ),
    "duplicate": ErrorType(
        "correct, but the object has a prediction with a higher score", "#E69F00"
    ),
    "background": ErrorType(f"IoU of at most {TOUCHED_IOU} with all objects", "#F0E442"),
    "missed": ErrorType("object without a prediction, even of a wrong class or box", "#0072B2"),
    "ignored": ErrorType(
        "in a crowd or on a difficult object: not counted", "#999999", error=False
    ),
}


def mark(
    boxes: Any, classes: Any, scores: Any, true_boxes: Any, true_classes: Any, ignored: Any = None
) -> tuple[list[str], list[str]]:
    """Classify the predictions and objects of an image.

    The rules, their order and the thresholds 0.5 and 0.1 are from TIDE (Bolya et al. 2020, arXiv
    2008.08115). Predictions are matched in order of descending score. Each prediction is matched to
    the unmatched object of its class with the largest overlap, if the IoU is at least 0.5. Matched
    predictions are right. Every other prediction has the first type that applies:

    - poor box: the best IoU with an object of its class is between 0.1 and 0.5
    - wrong class: IoU of at least 0.5 with an object of another class
    - duplicate: IoU of at least 0.5 with a matched object of its class
    - background: IoU of at most 0.1 with every object
    - wrong class and box: all other predictions

    An unmatched object has the type of the prediction with the highest score that nearly found the
    object, with a poor box or a wrong class. Without such a prediction, the object is missed. In
    contrast to TIDE, an unmatched prediction is ignored if more than half of its area is in an
    ignored object of its class.

    Args:
        boxes: corners x0, y0, x1, y1 of the predicted boxes, `(N, 4)`, pixels.
        classes, scores: class indices and scores of the predictions, `(N,)`.
        true_boxes, true_classes: boxes `(M, 4)` and class indices `(M,)` of the objects.
        ignored: whether an object is a crowd or difficult, `(M,)` bool; None if no object is.

    Returns:
        Types of the predictions and types of the objects, two lists of keys of `KINDS`, in the
        order of the arguments.
    """
    classes, true_classes = np.asarray(classes, int), np.asarray(true_classes, int)
    ignored = np.zeros(len(true_classes), bool) if ignored is None else np.asarray(ignored, bool)
    boxes, true_boxes = _xywh(boxes), _xywh(true_boxes)
    counted = np.flatnonzero(~ignored)
    iou = _overlap(boxes, true_boxes[counted], crowd=False)
    same = classes[:, None] == true_classes[counted][None, :]
    found = ["missed"] * len(counted)
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    taken_by = _match(iou * same, order)
    for index in taken_by.values():
        found[index] = "right"
    inside = _overlap(boxes, true_boxes[ignored], crowd=True) > FOUND_IOU
    inside = (inside & (classes[:, None] == true_classes[ignored][None, :])).any(axis=1)
    kinds = ["right"] * len(boxes)
    for i in order:
        if i in taken_by:
            continue
        kinds[i], index = ("ignored", None) if inside[i] else _error(iou[i], same[i], found)
        if index is not None and found[index] == "missed":
            found[index] = kinds[i]
    objects = np.full(len(true_classes), "ignored", object)
    objects[counted] = found
    return kinds, objects.tolist()


def _match(iou: np.ndarray, order: Iterable[int]) -> dict[int, int]:
    """Match predictions to objects of their class.

    Args:
        iou: IoU of each prediction with each object, `(N, M)`; 0 for different classes.
        order: indices of the predictions in order of descending score.

    Returns:
        Indices of the matched pairs, `{prediction: object}`.
    """
    free, taken_by = iou.copy(), {}
    for i in order if iou.shape[1] else ():
        index = int(free[i].argmax())
        if free[i, index] >= FOUND_IOU:
            taken_by[int(i)] = index
            free[:, index] = 0
    return taken_by


def _error(iou: np.ndarray, same: np.ndarray, found: list[str]) -> tuple[str, int | None]:
    """Return the type of an unmatched prediction, and the index of the object it nearly found.

    The index is None if the prediction is a duplicate, is on the background, or has a wrong class
    and box.

    Args:
        iou: IoU of the prediction with each object, `(M,)`.
        same: whether an object has the class of the prediction, `(M,)` bool.
        found: types of the objects, keys of `KINDS`.
    """
    if not len(iou):
        return "background", None
    own, other = iou * same, iou * ~same
    if TOUCHED_IOU <= own.max() <= FOUND_IOU:
        return "poor box", int(own.argmax())
    if other.max() >= FOUND_IOU:
        return "wrong class", int(other.argmax())
    if (own * (np.asarray(found) == "right")).max() >= FOUND_IOU:
        return "duplicate", None
    return ("background" if iou.max() <= TOUCHED_IOU else "wrong class and box"), None


def count(kinds: list[str], objects: list[str]) -> dict[str, int]:
    """Return the number of predictions of each type, and of missed objects, by key of `KINDS`."""
    return {name: objects.count(name) if name == "missed" else kinds.count(name) for name in KINDS}


def errors(counts: dict[str, int]) -> int:
    """Return the sum of the counts of all types that are errors."""
    return sum(number for name, number in counts.items() if KINDS[name].error)


def _xywh(boxes: Any) -> np.ndarray:
    boxes = np.array(boxes, float).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _overlap(boxes: np.ndarray, others: np.ndarray, crowd: bool) -> np.ndarray:
    """Compute the IoU `(N, M)`, or with `crowd` the fraction of each box inside each other box."""
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return coco_mask.iou(boxes, others, [int(crowd)] * len(others))
