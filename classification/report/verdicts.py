"""Verdicts about the difference robust minus standard, in percentage points.

docs/statistics.md has the assumptions and the simulated error rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, Flag, auto

import numpy as np
from scipy import optimize, special

from classification.report.trial_variance import VariancePart

MARGIN = 1.0  # points; largest difference that counts as no difference
# Probability of a wrong "better" or "worse". Results without variance over trials are tested once,
# at 5 %. Otherwise the first look uses 4 %, and each later look half of the remaining error.
FIXED, FIRST, LATER = 0.05, 0.04, 0.005
_SMALLEST, _LARGEST = -12.0, -1e-6  # range of the search for a p-value, as base-10 exponents
MOST_TRIALS, MOST_IMAGES = 1_000, 1_000_000  # largest numbers that are recommended


class Outcome(Enum):
    """Verdict on the robust side."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference"
    CANNOT_TELL = "cannot tell"


class Over(Flag):
    """Sources of variation that an interval covers."""

    NOTHING = 0
    TRIALS = auto()
    IMAGES = auto()
    TASKS = auto()


class Missing(Enum):
    """Reason for a missing interval."""

    TRIALS = "trials: one seeded trial does not show the variance over seeds"
    PREDICTIONS = "per-image predictions of all networks"
    TASKS = "tasks"


@dataclass(frozen=True)
class Discordant:
    """Images that exactly one of two networks without variance over trials classifies correctly.

    Attributes:
        gains, losses: weights in the mean, in points, of the images that only the robust (gains)
            or only the standard network (losses) classifies correctly.
    """

    gains: np.ndarray
    losses: np.ndarray

    @property
    def sign_test(self) -> float:
        """Exact two-sided p-value; 0 if the weights differ, because the test needs equal ones."""
        weights = np.concatenate([self.gains, self.losses])
        if len(weights) and np.ptp(weights) > 1e-9 * weights.max():
            return 0.0
        few, total = min(len(self.gains), len(self.losses)), len(weights)
        return min(1.0, 2 * float(special.bdtr(few, total, 0.5))) if total else 1.0


@dataclass(frozen=True)
class Estimate:
    """A difference with the components of its uncertainty.

    Attributes:
        mean: robust minus standard, points.
        over: sources of variation that the interval covers.
        trials: number of trials of the robust and of the standard side.
        seeds: variance caused by seeds; None: not in the interval.
        images: variance caused by test images; None: not in the interval.
        choice: points by which the choice of a network lowers the low end and raises the high end.
        unseen: whether a network was chosen without predictions. The selection bias that images
            cause is then estimated from the differences between networks.
        discordant: discordant images of two networks without variance over trials, for an exact
            interval; otherwise None.
        missing: reason for a missing interval; None: there is an interval.
        tests: number of test images; number of tasks for an estimate over tasks.
    """

    mean: float
    over: Over = Over.NOTHING
    trials: tuple[int, int] = (1, 1)
    seeds: VariancePart | None = None
    images: VariancePart | None = None
    choice: tuple[float, float] = (0.0, 0.0)
    unseen: bool = False
    discordant: Discordant | None = None
    missing: Missing | None = None
    tests: int | None = None

    @property
    def error(self) -> float:
        """Standard error, points."""
        if self.discordant is not None:
            return math.hypot(*self.discordant.gains, *self.discordant.losses)
        return math.sqrt(sum(part.variance for part in (self.seeds, self.images) if part))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Two-sided interval with confidence `1 - alpha`, points.

        Add the squared half-widths for seeds and for images, each from Student's t (Zou and
        Donner's MOVER). Satterthwaite's degrees of freedom for the sum are too large: with three
        trials, the error rate is up to 8 % at a nominal 5 %.
        """
        if self.discordant is not None:
            return _exact(self.discordant, alpha)
        parts = [part for part in (self.seeds, self.images) if part and part.variance]
        half = math.sqrt(sum(_quantile(part.df, alpha) ** 2 * part.variance for part in parts))
        return self.mean - half - self.choice[0], self.mean + half + self.choice[1]

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference: the smallest alpha whose interval excludes 0.

        Images of equal weight must pass the exact sign test (McNemar) as well.
        """

        def excess(exponent: float) -> float:
            low, high = self.interval(10**exponent)
            return max(low, -high)

        exact = self.discordant.sign_test if self.discordant else 0.0
        if excess(_LARGEST) <= 0:
            return 1.0
        if excess(_SMALLEST) > 0:
            return max(10**_SMALLEST, exact)
        return max(10 ** float(optimize.brentq(excess, _SMALLEST, _LARGEST, xtol=1e-5)), exact)


def _quantile(df: float, alpha: float) -> float:
    """Two-sided quantile of Student's t, or of the normal distribution for infinite `df`."""
    if math.isinf(df):
        return float(special.ndtri(1 - alpha / 2))
    return float(-special.stdtrit(df, alpha / 2))


@dataclass(frozen=True)
class Needed:
    """Trials or images that would change `cannot tell` to another verdict if the estimate is right.

    Attributes:
        trials: fewest and most trials of each side, at most `MOST_TRIALS`; None: no recommendation.
        images: fewest and most test images, at most `MOST_IMAGES`; None: no recommendation.
        missing: inputs that the results lack.
    """

    trials: tuple[int, int] | None = None
    images: tuple[int, int] | None = None
    missing: Missing | None = None


@dataclass(frozen=True)
class Verdict:
    """Estimate with its verdict.

    Attributes:
        estimate: the difference and the parts of its uncertainty.
        low, high: ends of the interval with confidence `1 - alpha`, points; None: no interval.
        p: two-sided p-value, corrected if several comparisons were made; None: no interval.
        alpha: allowed error probability.
        outcome: one of the four verdicts.
        margin: largest difference that counts as no difference, points.
        needed: recommendation for `CANNOT_TELL`; None for the other outcomes.
    """

    estimate: Estimate
    low: float | None
    high: float | None
    p: float | None
    alpha: float
    outcome: Outcome
    margin: float
    needed: Needed | None = None


def level(estimate: Estimate, look: int = 1) -> float:
    """Allowed error probability of a verdict.

    Args:
        estimate: the estimate; the level depends on its sources of variation.
        look: number of the look: 1 for the first verdict on these runs, 2 after trials were added,
            and so on. The levels are 4 % + 0.5 % + 0.25 % + ... = 5 %.
    """
    if not estimate.over & (Over.TRIALS | Over.TASKS):
        return FIXED
    return FIRST if look <= 1 else LATER / 2 ** (look - 2)


def judge(
    estimate: Estimate, p: float | None = None, *, margin: float = MARGIN, look: int = 1
) -> Verdict:
    """Verdict on one estimate.

    `better` and `worse`: the p-value is at most `level`. `no difference`: the whole interval is
    within the margin (two one-sided tests at `level / 2` each). Otherwise `cannot tell`.

    Args:
        estimate: the difference and the parts of its uncertainty.
        p: p-value corrected for the number of comparisons; None: the estimate's own.
        margin: largest difference that counts as no difference, points, >= 0.
        look: number of the look, see `level`.
    """
    alpha = level(estimate, look)
    if estimate.missing:
        trials = (3, 10) if estimate.missing is Missing.TRIALS else None
        needed = Needed(trials, missing=estimate.missing)
        return Verdict(estimate, None, None, None, alpha, Outcome.CANNOT_TELL, margin, needed)
    low, high = estimate.interval(alpha)
    p = estimate.p if p is None else p
    if p <= alpha and (low > 0 or high < 0):
        outcome = Outcome.BETTER if low > 0 else Outcome.WORSE
    elif -margin <= low and high <= margin:
        outcome = Outcome.NO_DIFFERENCE
    else:
        outcome = Outcome.CANNOT_TELL
    needed = _needed(estimate, margin, look) if outcome is Outcome.CANNOT_TELL else None
    return Verdict(estimate, low, high, p, alpha, outcome, margin, needed)


def _exact(found: Discordant, alpha: float) -> tuple[float, float]:
    """Interval from Poisson limits of the numbers of gains and losses.

    The limits of weighted sums are from Fay and Feuer (1997); for equal weights they are Garwood's
    (1936). Zou and Donner's MOVER (2008) combines them.
    """
    largest = float(max(np.concatenate([found.gains, found.losses, [0.0]])))
    (gain, a_low, a_high), (loss, b_low, b_high) = (
        _poisson(weights, largest, alpha) for weights in (found.gains, found.losses)
    )
    mean = gain - loss
    return (
        mean - math.hypot(gain - a_low, b_high - loss),
        mean + math.hypot(a_high - gain, loss - b_low),
    )


def _poisson(weights: np.ndarray, largest: float, alpha: float) -> tuple[float, float, float]:
    """Sum of the weights of counted events, and confidence limits of its expected value."""
    total, squares = float(weights.sum()), float((weights**2).sum())
    low = 0.0
    if total:
        low = squares / (2 * total) * _chi2(alpha / 2, 2 * total**2 / squares)
    more, spread = total + largest, squares + largest**2
    high = 0.0
    if more:
        high = spread / (2 * more) * _chi2(1 - alpha / 2, 2 * more**2 / spread)
    return total, low, high


def _chi2(probability: float, df: float) -> float:
    """Quantile of chi-squared; much faster than scipy.stats."""
    return 2 * float(special.gammaincinv(df / 2, probability))


def _needed(estimate: Estimate, margin: float, look: int) -> Needed:
    """Trials or images with which the interval excludes 0 or is within the margin.

    The true difference is assumed to be within one standard error of the estimate. This range gives
    the fewest and the most.
    """
    if estimate.over & Over.TASKS:
        return Needed(missing=Missing.TASKS)
    alpha = level(estimate, look + 1)
    # Half-widths that give a verdict: the larger of |difference| and margin - |difference|.
    mean, error = abs(estimate.mean), estimate.error
    ends = np.linspace(max(0.0, mean - error), mean + error, 101)
    widths = np.maximum(ends, margin - ends) - max(estimate.choice)
    images = error**2 if estimate.discordant is not None else 0.0
    if estimate.images:
        images = estimate.images.variance
    images *= _quantile(math.inf, alpha) ** 2
    if estimate.seeds and estimate.seeds.variance:
        now = max(estimate.trials)
        trials = np.arange(now + 1, MOST_TRIALS + 1)
        df = estimate.seeds.df * (trials - 1) / max(1, now - 1)
        seeds = special.stdtrit(df, alpha / 2) ** 2 * estimate.seeds.variance * now / trials
        fewest, most = (
            _first(trials, images + seeds, width) for width in (widths.max(), widths.min())
        )
        if fewest < MOST_TRIALS:
            return Needed(trials=(fewest, most))
    if images and estimate.tests:
        number = np.geomspace(estimate.tests + 1, MOST_IMAGES, 2000)
        fewest, most = (
            _first(number, images * estimate.tests / number, width)
            for width in (widths.max(), widths.min())
        )
        if fewest < MOST_IMAGES:
            return Needed(images=(fewest, most))
    return Needed(missing=Missing.PREDICTIONS if estimate.unseen else None)


def _first(numbers: np.ndarray, squares: np.ndarray, width: float) -> int:
    """First of the ascending numbers with a small enough squared half-width, else the last."""
    enough = np.flatnonzero(squares <= max(0.0, width) ** 2)
    return math.ceil(numbers[enough[0]] if len(enough) else numbers[-1])
