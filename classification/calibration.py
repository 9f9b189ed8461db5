"""Calibration: how well the confidences of a classifier agree with its accuracy.

All functions are pure. The confidence of an image is the highest predicted probability.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

BINS = 15  # equal-mass bins of the calibration error
COVERAGES = (50, 80, 90)  # percentages of the most confident images
RESAMPLES, RESAMPLE_SEED = 1000, 0  # bootstrap
TEMPERATURES = (0.01, 100.0)  # range of the search
BLOCK = 2**22  # numbers in memory at once


@dataclass(frozen=True)
class Scores:
    """Calibration scores of each image, `(N,)` float64 each.

    Attributes:
        nll: negative log-likelihood of the label in nats.
        brier: sum over classes of the squared difference between probability and label, in [0, 2].
        confidence: highest probability, in (0, 1].
        right: 1 if the class with the highest probability is the label, otherwise 0.
    """

    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def score(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Scores:
    """Score each image.

    Args:
        logits: logits `(N, K)`. A class with the logit -inf has the probability 0.
        labels: labels `(N,)`, int64.
        temperature: positive number to divide the logits by.
    """
    logs = (logits.double() / temperature).log_softmax(1)
    probabilities, rows = logs.exp(), torch.arange(len(labels))
    confidence, predicted = probabilities.max(1)
    # (p_y - 1)^2 + the other p^2 = sum p^2 - 2 p_y + 1
    brier = probabilities.square().sum(1) - 2 * probabilities[rows, labels] + 1
    right = (predicted == labels).double()
    found = (-logs[rows, labels], brier.clamp_min(0), confidence, right)
    return Scores(*(each.numpy() for each in found))


def best_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature with the lowest mean NLL, in `TEMPERATURES`.

    Images whose label has the logit -inf are ignored, because their NLL is always infinite.

    Args:
        logits: logits `(N, K)` of validation images.
        labels: labels `(N,)`, int64.

    Returns:
        The temperature, or None if all images are classified correctly. The NLL then falls as
        the temperature approaches 0, and has no minimum.
    """
    finite = logits[torch.arange(len(labels)), labels].isfinite()
    logits, labels = logits[finite].double(), labels[finite]
    if (logits.argmax(1) == labels).all():
        return None

    def mean_nll(log_temperature: float) -> float:
        loss = torch.nn.functional.cross_entropy(logits / np.exp(log_temperature), labels)
        return loss.item()

    # The NLL is convex in 1 / temperature, so it has one minimum.
    found = minimize_scalar(mean_nll, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def adaptive_ece(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Compute the expected calibration error with equal-mass bins, in percent.

    The sizes of the bins differ by at most one image. The error is the mean of the absolute
    difference between mean confidence and accuracy, weighted by the size of the bin.

    Args:
        confidence, right: values `(..., N)` as in `Scores`, in ascending order of confidence.
        bins: number of bins. With fewer images, each image is a bin.

    Returns:
        One error for each row, `(...)`.
    """
    images = confidence.shape[-1]
    starts = np.unique(np.arange(bins) * images // bins)
    gaps = np.add.reduceat(confidence - right, starts, axis=-1)
    return 100 * np.abs(gaps).sum(-1) / images


def accuracy_at_coverage(right: np.ndarray, coverage: float) -> np.ndarray:
    """Compute the accuracy on the most confident images, in percent.

    Args:
        right: values `(..., N)` as in `Scores`, in ascending order of confidence.
        coverage: percentage of the images, in (0, 100].

    Returns:
        One accuracy for each row, `(...)`.
    """
    images = right.shape[-1]
    return 100 * right[..., images - max(1, round(images * coverage / 100)) :].mean(-1)


def _covered(coverage: float, columns: "Columns") -> np.ndarray:
    return accuracy_at_coverage(columns[3], coverage)


Columns = tuple[np.ndarray, ...]  # the four arrays of `Scores`, in ascending order of confidence


@dataclass(frozen=True)
class Measure:
    """Measure of calibration.

    Attributes:
        compute: function from columns `(..., N)` to one value for each row, `(...)`.
        highest: highest possible value. The lowest is 0.
    """

    compute: Callable[[Columns], np.ndarray]
    highest: float


MEASURES = {
    "nll": Measure(lambda columns: columns[0].mean(-1), math.inf),
    "brier": Measure(lambda columns: columns[1].mean(-1), 2.0),
    "ece": Measure(lambda columns: adaptive_ece(columns[2], columns[3]), 100.0),
}
SELECTIVE = {str(percent): Measure(partial(_covered, percent), 100.0) for percent in COVERAGES}


def summarize(
    plain: Sequence[Scores], temperatures: Sequence[float | None], scaled: Sequence[Scores] | None
) -> dict:
    """Summarize the calibration of all trials; docs/reference/formats.md describes the result.

    Args:
        plain: scores of each trial, on the same images.
        temperatures: temperature of each trial; None: no temperature was chosen.
        scaled: scores of each trial with its temperature; None: a trial has no temperature.
    """
    found = _spread(plain, MEASURES | SELECTIVE)
    return {name: found[name] for name in MEASURES} | {
        "coverage": {name: found[name] for name in SELECTIVE},
        "temperature": None if scaled is None else list(temperatures),
        "scaled": None if scaled is None else _spread(scaled, MEASURES),
    }


def _spread(trials: Sequence[Scores], measures: dict[str, Measure]) -> dict[str, dict]:
    """Compute mean, standard deviation over trials, and 95 % bootstrap interval over images."""
    ordered = [_sorted(trial) for trial in trials]
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    with np.errstate(invalid="ignore"):  # an infinite NLL has no interval
        for counts in _resamples(len(trials[0].nll)):
            rows = [_repeat(columns, counts[:, order]) for order, columns in ordered]
            for name, measure in measures.items():
                values = np.mean([measure.compute(columns) for columns in rows], 0)
                resampled[name].append(values)
        found = {}
        for name, measure in measures.items():
            values = [float(measure.compute(columns)) for _, columns in ordered]
            found[name] = {
                "mean": fmean(values),
                "sd": stdev(values) if len(values) > 1 else None,
                "interval": _interval(fmean(values), np.concatenate(resampled[name]), measure),
                "trials": values,
            }
    return found


def _interval(mean: float, resampled: np.ndarray, measure: Measure) -> list[float]:
    """Return the basic bootstrap interval (95 %), which contains the mean.

    A calibration error is biased upward with few images, and more so on resampled images. Ends at
    `2 * mean - quantile` correct for this bias. The quantiles themselves never cover the error of a
    well calibrated classifier.
    """
    high, low = (2 * mean - np.quantile(resampled, [0.025, 0.975])).tolist()
    return [max(0.0, min(low, mean)), min(measure.highest, max(high, mean))]


def _sorted(scores: Scores) -> tuple[np.ndarray, Columns]:
    """Return the indices that sort by confidence, ascending, and the columns in this order."""
    order = np.argsort(scores.confidence, kind="stable")
    columns = (scores.nll, scores.brier, scores.confidence, scores.right)
    return order, tuple(column[order] for column in columns)


def _resamples(images: int) -> Iterator[np.ndarray]:
    """Yield how often each image is in a bootstrap sample, `(n, N)` int."""
    random, left = np.random.default_rng(RESAMPLE_SEED), RESAMPLES
    while left:
        rows = min(left, max(1, BLOCK // images))
        drawn = random.integers(images, size=(rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        left -= rows


def _repeat(columns: Columns, counts: np.ndarray) -> Columns:
    """Repeat each image `counts` times, in each row of `counts` `(n, N)`."""
    index = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    return tuple(column[index.reshape(counts.shape)] for column in columns)
