"""Accuracies and their confidence intervals, in percent."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from classification import sampling
from classification.datasets.specs import MEAN_PER_CLASS, TOP1
from robust_backbones.core.errors import UserError


def top1(predictions: Tensor, labels: Tensor, classes: int | None = None) -> float:
    """Percent [0, 100] of images that are classified correctly.

    Args:
        predictions, labels: classes `(N,)` int64.
        classes: ignored; all metrics have the same signature.

    Raises:
        UserError: there are no images.
    """
    if len(labels) == 0:
        raise UserError("the accuracy of 0 images is undefined. Give at least one image.")
    return 100 * (predictions == labels).double().mean().item()


def mean_per_class(predictions: Tensor, labels: Tensor, classes: int) -> float:
    """Recall of each class, then the plain mean over the classes, in percent [0, 100].

    Args:
        predictions, labels: classes `(N,)` int64, in [0, classes).
        classes: number of classes.

    Raises:
        UserError: a class has no image.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        raise UserError(
            f"no image of classes {empty}, whose recall is undefined. Give at least one image of "
            f"each of the {classes} classes."
        )
    right = torch.bincount(labels[predictions == labels], minlength=classes)
    return 100 * (right.double() / counts).mean().item()


METRICS = {TOP1: top1, MEAN_PER_CLASS: mean_per_class}


def confusion(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Confusion matrix `(classes, classes)` int64: true classes in rows, predicted in columns."""
    cells = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return cells.view(classes, classes)


def interval(
    predictions: Tensor, labels: Tensor, metric: str, confidence: float = 0.95
) -> tuple[float, float]:
    """Confidence interval over test images for a metric's mean over trials.

    It is Wilson's score interval with an effective number of images. With this number, a plain
    accuracy would have the same variance. For the mean over K classes with n_c images each it is at
    least K^2 / sum(1 / n_c), the number for equally hard classes.

    Args:
        predictions: predicted classes `(trials, N)` int64.
        labels: true classes `(N,)` int64; classes without images are ignored.
        metric: key of `METRICS`.
        confidence: confidence level, in (0, 1).

    Returns:
        Low and high end, percent.
    """
    right = (predictions == labels).double().mean(0).numpy()
    classes = labels.numpy() if metric == MEAN_PER_CLASS else None
    shares, parts = sampling.deviations(right, classes)
    mean, images = round(float(shares @ right), 12), 1 / float((shares**2).sum())
    # One or two images of a class are too few to estimate its variance. The mean over all images
    # bounds it.
    variance = max(float(parts.sum()), float((parts / shares**2).mean()) / images)
    if variance > 0:
        images = max(images, mean * (1 - mean) / variance)
    elif 0 < mean < 1:  # all images are equal, for example after two trials with opposite errors
        images = math.inf
    return _score(mean, images, confidence)


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy, in percent. It is valid near 0 and 100 % and for
    small n.

    Args:
        right: number of images that are classified correctly.
        n: number of images.
        confidence: confidence level, in (0, 1).

    Raises:
        UserError: there are no images.
    """
    if n == 0:
        raise UserError("the accuracy of 0 images is undefined. Give at least one image.")
    return _score(right / n, n, confidence)


def _score(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval, percent, for an accuracy in [0, 1] and a real number of images `n`."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # For accuracies of 0 and 1, an end is exactly 0 or 1, without the formula's rounding error.
    low, high = 100 * (center - half), 100 * (center + half)
    return (low if share > 0 else 0.0), (high if share < 1 else 100.0)
