"""Correction for multiple comparisons, least-squares lines, and average ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for multiple comparisons by Holm's step-down method.

    A missing p-value (None) remains None and does not count as a comparison.
    """
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected, highest = list(p), 0.0
    for rank, (value, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        corrected[i] = highest
    return corrected


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """Fit a least-squares line.

    Returns:
        Slope, intercept and R². R² is 0 if all `y` are equal. The result is None for fewer than
        three points, or if all `x` are equal.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    r2 = 0.0 if np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1] ** 2)
    return float(slope), float(intercept), r2


@dataclass(frozen=True)
class Ranks:
    """Average ranks of networks over tasks. Rank 1 is the best.

    Attributes:
        means: average rank of each network.
        p: p-value of Friedman's test, whose null hypothesis is that all networks are equal.
        critical: Nemenyi's critical difference. Networks whose ranks differ by less are not
            significantly different at 5 %.
        tasks: number of tasks.
    """

    means: tuple[float, ...]
    p: float
    critical: float
    tasks: int


def ranks(table: np.ndarray) -> Ranks | None:
    """Compute average ranks of networks over tasks.

    The result is None for fewer than two tasks or fewer than three networks.

    Args:
        table: accuracies `(tasks, networks)`, percent. Equal accuracies share a rank.
    """
    tasks, networks = table.shape
    if tasks < 2 or networks < 3:
        return None
    means = stats.rankdata(-table, axis=1).mean(0)
    with np.errstate(invalid="ignore"):
        p = float(stats.friedmanchisquare(*table.T).pvalue)
    studentized = stats.studentized_range.ppf(CONFIDENCE, networks, np.inf) / np.sqrt(2)
    critical = studentized * np.sqrt(networks * (networks + 1) / (6 * tasks))
    return Ranks(tuple(map(float, means)), 1.0 if np.isnan(p) else p, float(critical), tasks)
