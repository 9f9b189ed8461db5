"""Accuracies, always in percent, and how sure they are."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from robust_backbones.errors import UserError


def top1(logits: Tensor, labels: Tensor) -> float:
    """Percent [0, 100] of images whose highest logit is their label's.

    Args:
        logits: `(N, classes)`.
        labels: `(N,)`.

    Raises:
        UserError: there are no images.
    """
    if len(labels) == 0:
        raise UserError("accuracy of 0 images asked for; give at least one.")
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def mean_per_class(predictions: Tensor, labels: Tensor, classes: int) -> float:
    """Recall of each class, then the plain mean over the classes, in percent [0, 100].

    Args:
        predictions, labels: `(N,)`, int64 in [0, classes).
        classes: number of classes.

    Raises:
        UserError: a class has no image, so that its recall is undefined.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        raise UserError(f"no image of class {empty}; every one of {classes} classes needs one.")
    right = torch.bincount(labels[predictions == labels], minlength=classes)
    return 100 * (right.double() / counts).mean().item()


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy, in percent: sound near 0 and 100 %, and for small n.

    Args:
        right: images classified correctly.
        n: images.
        confidence: probability, in (0, 1), with which such intervals cover the true accuracy.

    Raises:
        UserError: there are no images.
    """
    if n == 0:
        raise UserError("accuracy of 0 images asked for; give at least one.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Its ends at 0 and at n are exact, but for rounding.
    low, high = 100 * (centre - half), 100 * (centre + half)
    return (low if right else 0.0), (high if right < n else 100.0)
