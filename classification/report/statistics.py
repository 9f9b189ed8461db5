"""Corrections for many comparisons, lines of least squares, and average ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, by Holm's step-down; None stays and does not count."""
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected, highest = list(p), 0.0
    for rank, (value, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        corrected[i] = highest
    return corrected


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """Slope, intercept and R² of the line of least squares; None of fewer than three points, or
    of points above each other.

    R² of points of equal height is 0: the line explains nothing.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    r2 = 0.0 if np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1] ** 2)
    return float(slope), float(intercept), r2


@dataclass(frozen=True)
class Ranks:
    """Average ranks over tasks; 1 is the best.

    Attributes:
        means: of each network.
        p: Friedman's test of all being alike.
        critical: Nemenyi's difference: networks that differ by less cannot be told apart at 5 %.
        tasks: number of tasks.
    """

    means: tuple[float, ...]
    p: float
    critical: float
    tasks: int


def ranks(table: np.ndarray) -> Ranks | None:
    """Friedman's ranks; None of fewer than two tasks or three networks.

    Args:
        table: `(tasks, networks)`, percent, nothing missing. Equal accuracies share a rank.
    """
    tasks, networks = table.shape
    if tasks < 2 or networks < 3:
        return None
    means = stats.rankdata(-table, axis=1).mean(0)
    with np.errstate(invalid="ignore"):
        p = float(stats.friedmanchisquare(*table.T).pvalue)
    studentised = stats.studentized_range.ppf(CONFIDENCE, networks, np.inf) / np.sqrt(2)
    critical = studentised * np.sqrt(networks * (networks + 1) / (6 * tasks))
    return Ranks(tuple(map(float, means)), 1.0 if np.isnan(p) else p, float(critical), tasks)
