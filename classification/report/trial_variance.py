"""Estimate the variance of a difference in accuracy over seeds and test images.

The two sides are the robust and the standard networks. The model of one side has crossed random
effects (Gallas 2006, Roe and Metz 1997). For network j, trial t and image i, it is
`right[j, t, i] = mean_j + image_ji + trial_jt + noise_jti`. All variances are variances of the
*estimate*, in squared percentage points.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from classification.sampling import deviations


@dataclass(frozen=True)
class VariancePart:
    """One part of an estimate's variance.

    Attributes:
        variance: variance in squared percentage points.
        df: degrees of freedom of `variance`; inf if the variance is known exactly.
    """

    variance: float
    df: float


def combined(parts: Iterable[VariancePart]) -> VariancePart:
    """Sum independent parts of a variance, with Satterthwaite's (1946) degrees of freedom."""
    used = [part for part in parts if part.variance > 0]
    if not used:
        return VariancePart(0.0, np.inf)
    total = sum(part.variance for part in used)
    down = sum(part.variance**2 / part.df for part in used)
    return VariancePart(total, total**2 / down if down else np.inf)


def of_trials(table: np.ndarray, share: float = 1.0) -> VariancePart | None:
    """Estimate the variance that seeds cause in the mean of one side.

    The variance is pooled over the networks of a side, but not over both sides, because the
    variances of standard and robust networks may differ.

    Args:
        table: accuracies `(networks, trials)`, percent.
        share: fraction from `share_of_seeds`; 1 gives an upper bound on the variance.

    Returns:
        The variance and its degrees of freedom; None for a single trial.
    """
    networks, trials = table.shape
    if trials < 2:
        return None
    df = networks * (trials - 1)
    scatter = ((table - table.mean(1, keepdims=True)) ** 2).sum() / df
    # Means of equal numbers differ by rounding errors, which must not count as variance.
    scatter = 0.0 if scatter < 1e-16 else float(scatter)
    factor = 1 + share * (inflation(networks, trials) - 1)
    return VariancePart(scatter * factor / trials, df)


def share_of_seeds(table: np.ndarray, own: float) -> float:
    """Estimate how much of the random variation in the choice of a network is due to seeds.

    The result is a fraction in [0, 1]. The selection images cause the rest of the variation.

    Args:
        table: accuracies `(networks, trials)`, percent.
        own: variance between networks caused by the selection images, in squared points.
    """
    trials = table.shape[1]
    if trials < 2:
        return 0.0
    seeds = float(table.var(1, ddof=1).mean()) / (trials - 1)
    return seeds / (seeds + own) if seeds + own > 0 else 1.0


def own_images(right: np.ndarray, weights: np.ndarray) -> float:
    """Estimate the variance that images cause between the networks of a side, in squared points.

    Args:
        right: correctness `(networks, trials, N)` in [0, 1].
        weights: weight `(N,)` of each image in the accuracy in percent.
    """
    means = right.mean(1, dtype=np.float32)
    apart = means - means.mean(0)
    return float(np.sum(apart.var(0) * weights**2)) * len(right) / max(1, len(right) - 1)


def of_networks(tables: Iterable[np.ndarray]) -> VariancePart:
    """Estimate the variance between the networks of a side, without the part that seeds cause.

    The result includes the effect of the images and real differences between the networks.

    Args:
        tables: accuracies `(networks, trials)` of each side, in percent. Each side needs at least
            two trials, and one side needs at least two networks.
    """
    total, df = 0.0, 0
    for table in tables:
        networks, trials = table.shape
        if networks > 1:
            between = float(table.mean(1).var(ddof=1))
            seeds = float(table.var(1, ddof=1).mean()) / trials
            total += (networks - 1) * (between - seeds)
            df += networks - 1
    return VariancePart(max(0.0, total / df), df)


def of_images(right: list[np.ndarray], labels: np.ndarray | None = None) -> VariancePart:
    """Estimate the variance that test images cause in the difference of two sides.

    The trial-averaged difference varies over images. Part of this variance is noise from the finite
    number of trials. The variance over trials already includes that part, so it is subtracted here.

    Args:
        right: correctness `(trials, N)` of each side, in [0, 1]. Values between 0 and 1 are
            averages over several choices of a network.
        labels: classes `(N,)` int for the mean over classes; None: mean over images. Classes with
            a single image are combined into one stratum, because one image has no variance.
    """
    delta = right[0].mean(0, dtype=float) - right[1].mean(0, dtype=float)
    noise = np.zeros(len(delta))
    for side in right:
        if len(side) > 1:
            noise += side.var(0, ddof=1, dtype=float) / len(side)
    shares, weighted = deviations(delta, labels)
    variance = float(weighted.sum())
    if variance < 1e-18:
        return VariancePart(0.0, np.inf)
    # Fourth moments give the variance of the estimated variance. With few discordant images it is
    # large, and the degrees of freedom are about twice the number of these images.
    spread = float((weighted**2).sum() - variance**2 / len(delta))
    df = min(len(delta) - 1, 2 * variance**2 / spread) if spread > 0 else len(delta) - 1
    variance -= float((shares**2 * noise).sum())
    return VariancePart(max(0.0, 1e4 * variance), max(1.0, df))


@lru_cache(maxsize=256)
def inflation(networks: int, trials: int) -> float:
    """Return the factor by which the choice of a network increases the variance over trials.

    Each trial evaluates the network that the other trials choose, so the trials are correlated. The
    factor is simulated for equally good networks with a fixed seed. The result is the largest
    factor for this or a smaller number of networks, because some networks may be too inaccurate to
    be chosen. The standard error of the factor is 2 %.
    """
    found, number = 1.0, 2
    while trials > 1 and number <= networks:
        draws = max(2_000, 2_000_000 // (number * trials))
        z = np.random.default_rng(number).standard_normal((draws, number, trials))
        chosen = (z.sum(2, keepdims=True) - z).argmax(1)
        means = np.take_along_axis(z, chosen[:, None], axis=1).mean((1, 2))
        found = max(found, float((means**2).mean()) * trials)
        number = networks if number < networks < 2 * number else 2 * number
    return found
