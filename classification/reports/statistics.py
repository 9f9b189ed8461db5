"""Whether one network transfers better than another: intervals, honest choice among several, and
corrections for many comparisons. Numbers in and out are percent.

Trials are repetitions with other seeds on the same test images, so that a difference between two
networks is uncertain in two ways: other seeds, and other test images, would have given another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from classification.reports.scatter import Spread, classes

DRAWS = 10_000  # of a bootstrap: fine enough for 0.05 / 12, the strictest of twelve corrected tests
CONFIDENCE = 0.95
VERDICTS = {1: "robust better", 0: "no difference", -1: "robust worse", None: "cannot be said"}

IMAGES_AND_TRIALS = "images and trials"
IMAGES = "images, one trial"
TRIALS = "trials"
UNPAIRED = "trials, unpaired"
ONE_TRIAL = "none: one trial, no predictions"


@dataclass(frozen=True)
class Difference:
    """How far one network is above another, in points of percent.

    Attributes:
        mean: the estimate.
        low, high: 95 % interval; None where nothing tells how uncertain it is.
        p: two-sided, of no difference; None likewise.
        over: what the interval is over: one of the words above.
        trials: number of pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    over: str
    trials: int


def over_images(deltas: np.ndarray, labels: np.ndarray | None = None, *,
                scatter: Spread | None = None, chosen: bool = False, seed: int = 0,
                confidence: float = CONFIDENCE) -> Difference:  # fmt: skip
    """The mean difference, if other images and other seeds had been drawn.

    Images are drawn with replacement, the same ones in all trials. Three trials cannot be drawn
    again: there are ten different draws of them, and their spread is too small. Their part is
    drawn from Student's t with the spread that they have. The two parts are added.

    Args:
        deltas: `(trials, N)`, right minus right, in [-1, 1]: 1 where only the first network is.
        labels: `(N,)`, for the mean over classes, within which images are then drawn; None: mean
            over images.
        scatter: over trials; None: that of `deltas`.
        chosen: as in `Spread.error`.
    """
    rng = np.random.default_rng(seed)
    groups = [np.arange(deltas.shape[1])] if labels is None else classes(labels)
    means = np.mean([deltas[:, group].mean(1) for group in groups], axis=0)
    drawn = _resampled([deltas[:, group].mean(0) for group in groups], rng)
    trials = len(deltas)
    if trials > 1:
        scatter = scatter or Spread(100 * float(means.std(ddof=1)), trials - 1)
        error = scatter.error(trials, chosen) / 100
        drawn = drawn + error * rng.standard_t(scatter.df, DRAWS)
    ends = (1 - confidence) / 2
    low, high = np.quantile(drawn, (ends, 1 - ends))
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = min(1.0, 2 * (tail + 1) / (DRAWS + 1))
    over = IMAGES_AND_TRIALS if trials > 1 else IMAGES
    return Difference(100 * float(means.mean()), 100 * float(low), 100 * float(high), float(p),
                      over, trials)  # fmt: skip


def _resampled(groups: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`(DRAWS,)` means over groups of the means of samples with replacement.

    Drawing how often each different value comes is the same as drawing images, and there are few
    different values. Where there are many, or many groups, the normal limit is as good.
    """
    kinds, counts = np.unique(np.round(groups[0], 9), return_counts=True)
    if len(groups) == 1 and len(kinds) <= 32:
        total = len(groups[0])
        return rng.multinomial(total, counts / total, DRAWS) @ kinds / total
    mean = np.mean([values.mean() for values in groups])
    variance = sum(values.var(ddof=len(values) > 1) / len(values) for values in groups)
    return rng.normal(mean, np.sqrt(variance) / len(groups), DRAWS)


def over_trials(robust: dict[int, float], standard: dict[int, float],
                scatter: Spread | None = None, confidence: float = CONFIDENCE,
                ) -> Difference:  # fmt: skip
    """The mean difference with Student's interval: over pairs of equal seeds where there are two
    of them, else Welch's.

    Args:
        robust, standard: seed -> accuracy.
        scatter: of such pairs; None: of these alone.
    """
    seeds = sorted(set(robust) & set(standard))
    if len(seeds) > 1 and scatter:
        mean = float(np.mean([robust[s] - standard[s] for s in seeds]))
        error = scatter.error(len(seeds))
        return student(mean, error, scatter.df, confidence, TRIALS, len(seeds))
    if len(seeds) > 1:
        return over_pairs([robust[s] - standard[s] for s in seeds], confidence)
    a, b = list(robust.values()), list(standard.values())
    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Difference(mean, None, None, None, ONE_TRIAL, min(len(a), len(b)))
    parts = [np.var(v, ddof=1) / len(v) for v in (a, b)]
    # Welch's degrees of freedom.
    down = sum(part**2 / (len(v) - 1) for part, v in zip(parts, (a, b), strict=True))
    df = sum(parts) ** 2 / down if down else len(a) + len(b) - 2
    return student(mean, np.sqrt(sum(parts)), df, confidence, UNPAIRED, min(len(a), len(b)))


def over_pairs(differences: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """The mean of differences, with Student's interval; of one, none."""
    values, n = np.asarray(differences, float), len(differences)
    if n < 2:
        return Difference(float(values.mean()), None, None, None, ONE_TRIAL, n)
    error = values.std(ddof=1) / np.sqrt(n)
    return student(float(values.mean()), error, n - 1, confidence, TRIALS, n)


def student(
    mean: float, error: float, df: float, confidence: float, over: str, trials: int
) -> Difference:
    """By Student's t, of an estimate and its standard error."""
    half = float(stats.t.ppf((1 + confidence) / 2, df) * error)
    if error:
        p = float(2 * stats.t.sf(abs(mean) / error, df))
    else:
        p = 1.0 if mean == 0 else 0.0
    return Difference(mean, mean - half, mean + half, p, over, trials)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, by Holm's step-down; None stays and does not count."""
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected, highest = list(p), 0.0
    for rank, (value, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        corrected[i] = highest
    return corrected


def verdict(mean: float, p: float | None, level: float = 1 - CONFIDENCE) -> str:
    """In words, of a difference robust minus standard.

    Args:
        p: corrected for the number of comparisons, if there are several.
    """
    if p is None:
        return VERDICTS[None]
    return VERDICTS[0 if p >= level else int(np.sign(mean))]


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
