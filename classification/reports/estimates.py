"""From correctness or accuracies of two sides to an estimate of their difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from classification.reports import crossfit, scatter
from classification.reports.scatter import Part
from classification.reports.verdicts import Discordant, Estimate, Missing, Over

# Two trials of one network, or two tasks, leave one degree of freedom, with which the error rate
# is 10 % at a nominal 5 %.
FEWEST_DF = 2


def from_predictions(robust: np.ndarray, standard: np.ndarray, labels: np.ndarray | None = None,
                     *, fixed: tuple[bool, bool] = (False, False)) -> Estimate:  # fmt: skip
    """Best robust minus best standard network, over trials and test images.

    Args:
        robust, standard: `(networks, trials, N)`, 1 where right, on the same images. The numbers
            of networks and of trials may differ.
        labels: `(N,)` int for the mean over classes; None: mean over images.
        fixed: for each side, whether its runs have no seed in them, so that one trial is enough.
    """
    sides = [crossfit.chosen(side, labels) for side in (robust, standard)]
    weights = _weights(labels, robust.shape[2])
    mean = float((sides[0].mean(0, dtype=float) - sides[1].mean(0, dtype=float)) @ weights)
    trials = (robust.shape[1], standard.shape[1])
    parts = [scatter.of_trials(100 * (side @ (weights / 100))) for side in (robust, standard)]
    if not all(known or _enough(part) for part, known in zip(parts, fixed, strict=True)):
        return Estimate(mean, trials=trials, missing=Missing.TRIALS)
    seeds = scatter.combined(part for part in parts if part)
    if not seeds.variance and len(robust) == len(standard) == 1:
        delta = (robust[0, 0].astype(float) - standard[0, 0]) * weights
        found = Discordant(delta[delta > 0], -delta[delta < 0])
        return Estimate(mean, Over.IMAGES, trials, discordant=found, tests=len(weights))
    images = scatter.of_images(sides, labels)
    choice = max(scatter.inflation(len(side), 2) for side in (robust, standard))
    images = Part(images.variance * choice, images.df)
    over = Over.IMAGES | (Over.TRIALS if seeds.variance else Over.NOTHING)
    return Estimate(mean, over, trials, seeds, images, tests=len(weights))


def from_accuracies(robust: np.ndarray, standard: np.ndarray,
                    images: int | None = None) -> Estimate:  # fmt: skip
    """The same without predictions: over trials alone, about this test set.

    A choice among several networks is by the other trials on the same images, whose luck stays in
    the estimate. That luck is bounded by binomial variances, which are too large for networks that
    find the same images hard.

    Args:
        robust, standard: `(networks, trials)`, percent.
        images: number of test images; None: unknown.
    """
    sides = [crossfit.chosen_accuracies(side) for side in (robust, standard)]
    mean, trials = float(sides[0].mean() - sides[1].mean()), (robust.shape[1], standard.shape[1])
    parts = [scatter.of_trials(side) for side in (robust, standard)]
    if not all(map(_enough, parts)):
        return Estimate(mean, trials=trials, missing=Missing.TRIALS)
    seeds = scatter.combined(part for part in parts if part)
    if not seeds.variance:  # identical trials say nothing about seeds
        return Estimate(mean, trials=trials, missing=Missing.PREDICTIONS)
    if len(robust) == len(standard) == 1:
        return Estimate(mean, Over.TRIALS, trials, seeds)
    if images is None:
        return Estimate(mean, trials=trials, missing=Missing.PREDICTIONS)
    errors = [math.sqrt(max(0.0, m * (100 - m)) / images) for m in (s.mean() for s in sides)]
    bias = tuple(luck(len(side)) * error
                 for side, error in zip((robust, standard), errors, strict=True))  # fmt: skip
    return Estimate(mean, Over.TRIALS | Over.IMAGES, trials, seeds,
                    Part(errors[0] ** 2 + errors[1] ** 2, np.inf), (bias[0], bias[1]))  # fmt: skip


def over_tasks(means: Sequence[float]) -> Estimate:
    """The mean over tasks, taken as a sample of tasks: Student's t.

    Args:
        means: differences, points, one for each task.
    """
    values = np.asarray(means, float)
    if len(values) - 1 < FEWEST_DF:
        mean = float(values.mean()) if len(values) else 0.0
        return Estimate(mean, missing=Missing.TASKS, tests=len(values))
    part = Part(float(values.var(ddof=1)) / len(values), len(values) - 1)
    return Estimate(float(values.mean()), Over.TASKS, images=part, tests=len(values))


def luck(networks: int) -> float:
    """Expected maximum of that many standard normal numbers."""
    x = np.linspace(-8, 8, 4001)
    inside = 1 - special.ndtr(x) ** networks
    return float(inside.sum() * (x[1] - x[0]) - 8) if networks > 1 else 0.0


def _enough(part: Part | None) -> bool:
    """Whether the scatter of the trials is known well enough."""
    return part is not None and part.df >= FEWEST_DF


def _weights(labels: np.ndarray | None, images: int) -> np.ndarray:
    """Weight of each image in the mean, so that the mean is in percent."""
    if labels is None:
        return np.full(images, 100 / images)
    counts = np.bincount(labels)
    return 100 / (np.count_nonzero(counts) * counts[labels])
