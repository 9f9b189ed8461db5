"""How much the difference of two networks scatters from trial to trial."""

from dataclasses import dataclass

import numpy as np

ENOUGH = 10  # degrees of freedom, to take one estimate of a variance from another


@dataclass(frozen=True)
class Spread:
    """How the difference of two networks scatters from trial to trial.

    Attributes:
        sd: standard deviation, percent.
        df: degrees of freedom that it was estimated with.
    """

    sd: float
    df: int

    def error(self, trials: int, chosen: bool = False) -> float:
        """Standard error of a mean over trials, percent.

        Args:
            chosen: the trials chose for each other what they are the mean of, which ties them.
                1 / n alone would find a difference among equals in up to 14 % of cases instead of
                5; this is Nadeau and Bengio's correction (2003) for folds that share what they
                learn from: n - 1 trials choose, 1 reports.
        """
        return self.sd * float(np.sqrt(1 / trials + (1 / (trials - 1) if chosen else 0)))


def pooled(table: np.ndarray) -> Spread | None:
    """Of a task's networks, pooled: what a seed does to all of them drops out of differences, and
    the rest is taken to be equally large for all. Three trials of two networks alone would leave
    two degrees of freedom, with which next to nothing can be shown.

    Args:
        table: `(networks, trials)`, percent, a column for each seed.

    Returns:
        None of one network or one trial.
    """
    networks, trials = table.shape
    if min(networks, trials) < 2:
        return None
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    df = (networks - 1) * (trials - 1)
    return Spread(float(np.sqrt(2 * (rest**2).sum() / df)), df)


def of_trials_alone(scatter: Spread, right: np.ndarray,
                    labels: np.ndarray | None = None) -> Spread:  # fmt: skip
    """A spread without the part that comes from the number of images being finite, which drawing
    images again has in it already. With few degrees of freedom it stays: too large, but safe.

    Args:
        right: `(networks, trials, N)`, 1 where right, of those that `scatter` is of.
        labels: as in `statistics.over_images`.
    """
    if scatter.df < ENOUGH:
        return scatter
    right = right.astype(np.float32)
    # Of an image from trial to trial, less what all images do together.
    own = right.var(1, ddof=1).mean(0)
    groups = [np.arange(len(own))] if labels is None else classes(labels)
    shared = np.mean([right[:, :, group].mean(2) for group in groups], axis=0).var(1, ddof=1).mean()
    parts = [max(0.0, own[group].mean() - shared) / len(group) for group in groups]
    noise = 2 * 100**2 * sum(parts) / len(groups) ** 2
    return Spread(float(np.sqrt(max(0.0, scatter.sd**2 - noise))), scatter.df)


def classes(labels: np.ndarray) -> list[np.ndarray]:
    """For each class the numbers of its images."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
