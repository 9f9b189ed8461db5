"""What is wrong with a detection: one kind for each prediction and each object of an image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

FOUND_IOU = 0.5  # overlap from which on an object counts as found
TOUCHED_IOU = 0.1  # overlap up to which a prediction counts as on nothing


@dataclass(frozen=True)
class Kind:
    """A kind, in words; `error` if it is one. Colours are those of Okabe and Ito (2008), which
    people with any kind of colour vision can tell apart."""

    meaning: str
    colour: str
    error: bool = True


KINDS = {
    "right": Kind(f"class right, overlap (IoU) at least {FOUND_IOU}", "#009E73", error=False),
    "wrong class": Kind(f"overlap at least {FOUND_IOU} with an object of another class", "#D55E00"),
    "poor box": Kind(f"class right, overlap from {TOUCHED_IOU} to {FOUND_IOU}", "#56B4E9"),
    "wrong class and box": Kind(
        f"overlap from {TOUCHED_IOU} to {FOUND_IOU}, with an object of another class", "#CC79A7"
    ),
    "duplicate": Kind("all right, but the object was found with a higher score", "#E69F00"),
    "background": Kind(f"overlap at most {TOUCHED_IOU} with any object", "#F0E442"),
    "missed": Kind("object that nothing found, not even with a wrong class or box", "#0072B2"),
    "ignored": Kind("in a crowd or on a difficult object; not counted", "#999999", error=False),
}


def mark(
    boxes: Any, classes: Any, scores: Any, true_boxes: Any, true_classes: Any, ignored: Any = None
) -> tuple[list[str], list[str]]:
    """Give each prediction and each object of an image its kind.

    The rules, and their order, are those of TIDE (Bolya et al. 2020, arXiv 2008.08115) with its
    thresholds, 0.5 and 0.1. Predictions take objects by score: each the object of its class that it
    overlaps most, if that is free and the IoU at least 0.5; they are right. The others are, by the
    first rule that fits: poor box (best IoU with an object of its class between 0.1 and 0.5), wrong
    class (IoU with an object of another class at least 0.5), duplicate (IoU at least 0.5 with a
    taken object of its class), background (IoU with every object at most 0.1), and else wrong class
    and poor box at once. An object that is not found has the kind of the best-scored prediction
    which would have found it with another class or box, or is missed. Unlike TIDE's, a prediction
    that lies by more than half in an ignored region of its class is not counted as an error.

    Args:
        boxes: `(N, 4)` x0, y0, x1, y1.
        classes, scores: `(N,)`.
        true_boxes, true_classes: `(M, 4)`, `(M,)`.
        ignored: `(M,)` bool, crowds and difficult objects; None for none.

    Returns:
        `(kinds of the predictions, kinds of the objects)`, lists of keys of `KINDS`, in the order
        of the arguments.
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
    for place in taken_by.values():
        found[place] = "right"
    inside = _overlap(boxes, true_boxes[ignored], crowd=True) > FOUND_IOU
    inside = (inside & (classes[:, None] == true_classes[ignored][None, :])).any(axis=1)
    kinds = ["right"] * len(boxes)
    for i in order:
        if i in taken_by:
            continue
        kinds[i], place = ("ignored", None) if inside[i] else _error(iou[i], same[i], found)
        if place is not None and found[place] == "missed":
            found[place] = kinds[i]
    objects = np.full(len(true_classes), "ignored", object)
    objects[counted] = found
    return kinds, objects.tolist()


def _match(iou: np.ndarray, order: Iterable[int]) -> dict[int, int]:
    """`{prediction: object}`, given the IoUs with objects of the same class."""
    free, taken_by = iou.copy(), {}
    for i in order if iou.shape[1] else ():
        place = int(free[i].argmax())
        if free[i, place] >= FOUND_IOU:
            taken_by[int(i)] = place
            free[:, place] = 0
    return taken_by


def _error(iou: np.ndarray, same: np.ndarray, found: list[str]) -> tuple[str, int | None]:
    """The kind of a prediction that took no object, and the object that it would have found."""
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
    """Predictions of each kind, and missed objects under "missed"; every key of `KINDS`."""
    return {name: objects.count(name) if name == "missed" else kinds.count(name) for name in KINDS}


def errors(counts: dict[str, int]) -> int:
    """How many of the counted are errors."""
    return sum(number for name, number in counts.items() if KINDS[name].error)


def _xywh(boxes: Any) -> np.ndarray:
    boxes = np.array(boxes, float).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _overlap(boxes: np.ndarray, others: np.ndarray, crowd: bool) -> np.ndarray:
    """`(N, M)` IoU, or the part of each of `boxes` that lies in each of `others` if `crowd`."""
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return coco_mask.iou(boxes, others, [int(crowd)] * len(others))
