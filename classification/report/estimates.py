"""Estimates of the difference between two sides, from predictions or from accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from classification.report import crossfit, trial_variance
from classification.report.trial_variance import VariancePart
from classification.report.verdicts import Discordant, Estimate, Missing, Over

# Minimum degrees of freedom for an interval. Two trials of one network, or two tasks, leave only
# one degree of freedom. The error rate is then up to 11 % at a nominal 5 %.
FEWEST_DF = 2
SEEDED = 1 / 3  # fraction of the distance that `_missed` uses for several trials


def from_predictions(
    robust: np.ndarray,
    standard: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    fixed: tuple[bool, bool] = (False, False),
) -> Estimate:
    """Estimate the difference between the best robust and the best standard network.

    The interval covers other trials and other test images.

    Args:
        robust, standard: correctness `(networks, trials, N)` in [0, 1], on the same images. The two
            sides may have different numbers of networks and trials.
        labels: classes `(N,)` int for the mean over classes; None: mean over images.
        fixed: whether the runs of the robust and of the standard side do not depend on a seed. One
            trial is then enough.
    """
    sides = [crossfit.cross_fit(side, labels) for side in (robust, standard)]
    weights = _weights(labels, robust.shape[2])
    mean = float((sides[0].mean(0, dtype=float) - sides[1].mean(0, dtype=float)) @ weights)
    trials = (robust.shape[1], standard.shape[1])
    # Networks are chosen on half of the images only, so the variance that images cause is doubled.
    tables = [side @ weights for side in (robust, standard)]
    shares = [
        trial_variance.share_of_seeds(table, 2 * trial_variance.own_images(side, weights))
        for table, side in zip(tables, (robust, standard), strict=True)
    ]
    parts = [trial_variance.of_trials(*both) for both in zip(tables, shares, strict=True)]
    if not all(known or _enough(part) for part, known in zip(parts, fixed, strict=True)):
        return Estimate(mean, trials=trials, missing=Missing.TRIALS)
    seeds = trial_variance.combined(part for part in parts if part)
    single = not seeds.variance and len(robust) == len(standard) == 1
    # The exact interval counts images, so it needs 1 or 0 for each image instead of a fraction.
    if single and all(np.isin(side[0, 0], (0, 1)).all() for side in (robust, standard)):
        delta = (robust[0, 0].astype(float) - standard[0, 0]) * weights
        found = Discordant(delta[delta > 0], -delta[delta < 0])
        return Estimate(mean, Over.IMAGES, trials, discordant=found, tests=len(weights))
    images = trial_variance.of_images(sides, labels)
    choice = max(
        1 + (1 - share) * (trial_variance.inflation(len(side), 2) - 1)
        for share, side in zip(shares, (robust, standard), strict=True)
    )
    images = VariancePart(images.variance * choice, images.df)
    over = Over.IMAGES | (Over.TRIALS if seeds.variance else Over.NOTHING)
    missed = [
        _missed(table, float(side.mean(0, dtype=float) @ weights))
        for table, side in zip(tables, sides, strict=True)
    ]
    return Estimate(mean, over, trials, seeds, images, (missed[1], missed[0]), tests=len(weights))


def _missed(table: np.ndarray, chosen: float) -> float:
    """Bound the advantage, in points, of a side's best network over the cross-fitted choices.

    Cross-fitting sometimes chooses a worse network, so the cross-fitted mean is too low. The
    maximum over all results is too high. The true accuracy of the best network is between these two
    numbers. For one trial of runs without a seed, the bound is the full distance between them (an
    intersection-union test). For several trials, the fraction `SEEDED` of the distance is enough.
    Simulations of sides with different networks show this.

    Args:
        table: accuracies `(networks, trials)`, percent.
        chosen: cross-fitted mean, percent.
    """
    if len(table) == 1:
        return 0.0
    part = SEEDED if table.shape[1] > 1 else 1.0
    return part * max(0.0, float(table.mean(1).max()) - chosen)


def from_accuracies(
    robust: np.ndarray, standard: np.ndarray, images: int | None = None
) -> Estimate:
    """Estimate the difference between the best networks of both sides without predictions.

    If each side has one network, the interval covers trials only and applies to this test set. If a
    side has several networks, its best network is chosen in other trials on the same images. The
    selection bias that images cause therefore remains in the estimate. The size of this bias is
    estimated from the differences between networks of a side that seeds do not explain. Real
    differences between networks make the interval wider than necessary.

    Args:
        robust, standard: accuracies `(networks, trials)`, percent.
        images: number of test images, which bounds the selection bias; None: the number is
            unknown, or the metric is not an accuracy.
    """
    tables, trials = (robust, standard), (robust.shape[1], standard.shape[1])
    sides = [crossfit.cross_fit_accuracies(side) for side in tables]
    mean = float(sides[0].mean() - sides[1].mean())
    own = VariancePart(0.0, np.inf)
    if max(map(len, tables)) > 1 and min(trials) > 1:
        own = trial_variance.of_networks(tables)
        bound = max(float(side.mean()) * (100 - float(side.mean())) for side in sides)
        if images:
            own = VariancePart(min(own.variance, max(0.0, bound) / images), own.df)
    parts = [
        trial_variance.of_trials(side, trial_variance.share_of_seeds(side, own.variance))
        for side in tables
    ]
    if not all(map(_enough, parts)):
        return Estimate(mean, trials=trials, missing=Missing.TRIALS)
    seeds = trial_variance.combined(part for part in parts if part)
    if not seeds.variance:  # identical trials do not show the variance over seeds
        return Estimate(mean, trials=trials, missing=Missing.PREDICTIONS)
    if len(robust) == len(standard) == 1:
        return Estimate(mean, Over.TRIALS, trials, seeds)
    # Selection on the test images raises the accuracy and reduces its variance.
    chance = [1 - trial_variance.share_of_seeds(side, own.variance) for side in tables]
    found = [maximum_of_normals(len(side)) for side in tables]
    raised = [
        maximum * math.sqrt(own.variance * part)
        for (maximum, _), part in zip(found, chance, strict=True)
    ]
    missed = [_missed(table, float(side.mean())) for table, side in zip(tables, sides, strict=True)]
    rest = sum(1 - part * (1 - variance) for (_, variance), part in zip(found, chance, strict=True))
    choice = (raised[0] + missed[1], raised[1] + missed[0])
    return Estimate(
        mean,
        Over.TRIALS | Over.IMAGES,
        trials,
        seeds,
        VariancePart(rest * own.variance, np.inf),
        choice,
        unseen=True,
    )


def over_tasks(means: Sequence[float]) -> Estimate:
    """Estimate the mean difference over tasks by Student's t.

    The tasks are treated as a random sample of all tasks.

    Args:
        means: difference of each task, points.
    """
    values = np.asarray(means, float)
    if len(values) - 1 < FEWEST_DF:
        mean = float(values.mean()) if len(values) else 0.0
        return Estimate(mean, missing=Missing.TASKS, tests=len(values))
    part = VariancePart(float(values.var(ddof=1)) / len(values), len(values) - 1)
    return Estimate(float(values.mean()), Over.TASKS, images=part, tests=len(values))


def maximum_of_normals(networks: int) -> tuple[float, float]:
    """Return the mean and the variance of the maximum of `networks` standard normal numbers."""
    x = np.linspace(-8, 8, 4001)
    density = np.diff(special.ndtr(x) ** networks)
    middle = (x[1:] + x[:-1]) / 2
    mean = float(density @ middle)
    return mean, float(density @ (middle - mean) ** 2)


def _enough(part: VariancePart | None) -> bool:
    """Return whether the variance over trials has enough degrees of freedom."""
    return part is not None and part.df >= FEWEST_DF


def _weights(labels: np.ndarray | None, images: int) -> np.ndarray:
    """Return the weight `(N,)` of each image in the mean accuracy, percent."""
    if labels is None:
        return np.full(images, 100 / images)
    counts = np.bincount(labels)
    return 100 / (np.count_nonzero(counts) * counts[labels])
