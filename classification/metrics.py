"""Compute accuracies and their confidence intervals, in percent."""

import math
from statistics import NormalDist

import numpy as np
import torch
from scipy import special
from torch import Tensor

from classification import sampling
from classification.datasets.specs import MEAN_PER_CLASS, TOP1
from robust_backbones.core.errors import UserError

AT_CHANCE = "accuracy_at_chance"  # name of the warning in results
SIGNIFICANCE = 0.05


def top1(predictions: Tensor, labels: Tensor, classes: int | None = None) -> float:
    """Compute the percentage [0, 100] of images that are classified correctly.

    Args:
        predictions, labels: predicted and true classes `(N,)` int64.
        classes: number of classes. It is ignored, but all metrics have the same arguments.

    Raises:
        UserError: there are no images.
    """
    if len(labels) == 0:
        raise UserError("the accuracy of 0 images is undefined. Give at least one image.")
    return 100 * (predictions == labels).double().mean().item()


def mean_per_class(predictions: Tensor, labels: Tensor, classes: int) -> float:
    """Compute the unweighted mean over classes of each class's recall, in percent [0, 100].

    Args:
        predictions, labels: predicted and true classes `(N,)` int64, in [0, classes).
        classes: number of classes.

    Raises:
        UserError: a class has no image.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        raise UserError(
            f"no images of classes {empty}, so their recall is undefined. Give at least one image "
            f"of each of the {classes} classes."
        )
    right = torch.bincount(labels[predictions == labels], minlength=classes)
    return 100 * (right.double() / counts).mean().item()


METRICS = {TOP1: top1, MEAN_PER_CLASS: mean_per_class}


def confusion(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Compute the confusion matrix `(classes, classes)` int64.

    Rows are true classes, and columns are predicted classes.
    """
    cells = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return cells.view(classes, classes)


def interval(
    predictions: Tensor, labels: Tensor, metric: str, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute a confidence interval over test images for a metric's mean over trials.

    Args:
        predictions: predicted classes `(trials, N)` int64.
        labels: true classes `(N,)` int64. Classes without images are ignored.
        metric: key of `METRICS`.
        confidence: confidence level, in (0, 1).

    Returns:
        Lower and upper end in percent.
    """
    return share_interval((predictions == labels).double().mean(0), labels, metric, confidence)


def mean_share(right: Tensor, labels: Tensor, metric: str) -> float:
    """Compute the accuracy in percent of images with several versions or trials.

    Args:
        right: share of the versions of each image that are classified correctly, `(N,)` in [0, 1].
        labels, metric: as for `interval`.
    """
    shares, _ = _deviations(right, labels, metric)
    return 100 * float(shares @ right.double().numpy())


def share_interval(
    right: Tensor, labels: Tensor, metric: str, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute a confidence interval over test images for the accuracy of `mean_share`.

    The result is Wilson's score interval with an effective number of images. The top-1 accuracy on
    this number of images would have the same variance. For the mean over K classes with n_c images
    each, the number is at least K^2 / sum(1 / n_c), which is correct for equally hard classes.

    Args:
        right, labels, metric: as for `mean_share`.
        confidence: confidence level, in (0, 1).

    Returns:
        Lower and upper end in percent.
    """
    shares, parts = _deviations(right, labels, metric)
    mean, images = round(float(shares @ right.double().numpy()), 12), 1 / float((shares**2).sum())
    # One or two images of a class are too few to estimate the variance of the class. Use at least
    # the average variance over all images.
    variance = max(float(parts.sum()), float((parts / shares**2).mean()) / images)
    if variance > 0:
        images = max(images, mean * (1 - mean) / variance)
    elif 0 < mean < 1:  # all images have the same value, as after two trials with opposite errors
        images = math.inf
    return _score(mean, images, confidence)


def _deviations(right: Tensor, labels: Tensor, metric: str) -> tuple[np.ndarray, np.ndarray]:
    classes = labels.numpy() if metric == MEAN_PER_CLASS else None
    return sampling.deviations(right.double().numpy(), classes)


def at_chance(right: int, images: int, classes: int) -> bool:
    """Return whether random guesses may reach this accuracy (one-sided binomial test, 5 %).

    Return False if even an accuracy of 100 % would not be significant.

    Args:
        right: number of images that are classified correctly.
        images: number of images.
        classes: number of classes.
    """
    least, found = (special.bdtrc(k - 1, images, 1 / classes) for k in (images, right))
    return least <= SIGNIFICANCE < found  # probabilities of at least k correct guesses


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval of an accuracy, in percent.

    The interval is valid for accuracies near 0 and 100 %, and for few images.

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
    """Compute Wilson's interval in percent for an accuracy in [0, 1]. `n` may be fractional."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # For accuracies of 0 and 1, one end is exactly 0 or 1. The formula would have a rounding error.
    low, high = 100 * (center - half), 100 * (center + half)
    return (low if share > 0 else 0.0), (high if share < 1 else 100.0)
