"""Accuracies, always in percent, and how sure they are."""

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from robust_backbones.errors import UserError


def top1(predictions: Tensor, labels: Tensor, classes: int | None = None) -> float:
    """Percent [0, 100] of images that are right.

    Args:
        predictions, labels: `(N,)` int64.
        classes: not needed; metrics are called alike.

    Raises:
        UserError: there are no images.
    """
    if len(labels) == 0:
        raise UserError("accuracy of 0 images asked for; give at least one.")
    return 100 * (predictions == labels).double().mean().item()


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


METRICS = {"top1": top1, "mean_per_class": mean_per_class}


def confusion(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`(classes, classes)` int64: of the images of a class (row), how many were taken for which."""
    cells = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return cells.view(classes, classes)


def bootstrap(predictions: Tensor, labels: Tensor, classes: int, metric: str, *, seed: int = 0,
              resamples: int = 2000, confidence: float = 0.95) -> tuple[float, float]:  # fmt: skip
    """Percentile interval of a metric's mean over trials when other images had been drawn.

    Images are drawn with replacement, the same ones for all trials. A class that a draw leaves out
    has no recall in it, and does not count there.

    Args:
        predictions: `(trials, N)` int64.
        labels: `(N,)` int64 in [0, classes).
        metric: key of `METRICS`.
        seed: of the draws.

    Returns:
        Low and high end, percent.
    """
    # In float64 NumPy, whose bincount takes weights; of all trials at once.
    right = (predictions == labels).double().mean(0).numpy()
    numbers, rng = labels.numpy(), np.random.default_rng(seed)
    values = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(0, len(numbers), len(numbers))
        if metric == "top1":
            values[i] = right[drawn].mean()
            continue
        counts = np.bincount(numbers[drawn], minlength=classes)
        hits = np.bincount(numbers[drawn], right[drawn], minlength=classes)
        values[i] = (hits[counts > 0] / counts[counts > 0]).mean()
    ends = (1 - confidence) / 2
    low, high = 100 * np.quantile(values, (ends, 1 - ends))
    return float(low), float(high)


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
