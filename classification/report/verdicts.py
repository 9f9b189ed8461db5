"""Verdicts about the difference between robust and standard networks, in percentage points.

docs/reference/statistics.md describes the assumptions and the simulated error rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, Flag, auto

import numpy as np
from scipy import optimize, special

from classification.report.trial_variance import VariancePart

MARGIN = 1.0  # largest difference that counts as no difference, in points
# Allowed probability of a wrong "better" or "worse". Results without variance over trials are
# tested once, at 5 %. Otherwise the first look uses 4 %, and each later look uses half of the rest.
FIXED, FIRST, LATER = 0.05, 0.04, 0.005
_SMALLEST, _LARGEST = -12.0, -1e-6  # range of the search for a p-value, as base-10 exponents
MOST_TRIALS, MOST_IMAGES = 1_000, 1_000_000  # largest numbers to recommend


class Outcome(Enum):
    """Verdict on the robust networks compared with the standard networks."""

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
    """Missing input that an interval or a verdict needs."""

    TRIALS = "trials: one seeded trial does not show the variance over seeds"
    PREDICTIONS = "per-image predictions of all networks"
    TASKS = "tasks"


@dataclass(frozen=True)
class Discordant:
    """Images that exactly one of two networks classifies correctly.

    The networks have no variance over trials.

    Attributes:
        gains: weight in the mean, in points, of each image that only the robust network classifies
            correctly.
        losses: the same weights for the standard network.
    """

    gains: np.ndarray
    losses: np.ndarray

    @property
    def sign_test(self) -> float:
        """Exact two-sided p-value; 0 for unequal weights, which the test does not support."""
        weights = np.concatenate([self.gains, self.losses])
        if len(weights) and np.ptp(weights) > 1e-9 * weights.max():
            return 0.0
        few, total = min(len(self.gains), len(self.losses)), len(weights)
        return min(1.0, 2 * float(special.bdtr(few, total, 0.5))) if total else 1.0


@dataclass(frozen=True)
class Estimate:
    """Estimated difference with the components of its uncertainty.

    Attributes:
        mean: robust minus standard accuracy, in points.
        over: sources of variation that the interval covers.
        trials: number of trials of the robust and of the standard side.
        seeds: variance caused by seeds; None: the interval does not cover seeds.
        images: variance caused by test images; None: the interval does not cover images.
        choice: points by which the choice of a network lowers the low end and raises the high end
            of the interval.
        unseen: whether a network was chosen without per-image predictions. The selection bias that
            images cause is then estimated from the differences between networks.
        discordant: discordant images of two networks without variance over trials, for an exact
            interval; otherwise None.
        missing: reason for a missing interval; None: there is an interval.
        tests: number of test images, or number of tasks for an estimate over tasks.
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
        """Standard error in points."""
        if self.discordant is not None:
            return math.hypot(*self.discordant.gains, *self.discordant.losses)
        return math.sqrt(sum(part.variance for part in (self.seeds, self.images) if part))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Compute the two-sided interval with confidence `1 - alpha`, in points.

        The squared half-widths for seeds and for images are added, each from Student's t (Zou and
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
        """Two-sided p-value: the smallest alpha whose interval excludes 0.

        For discordant images of equal weight, the result is at least the p-value of the exact sign
        test (McNemar).
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
    """Return the two-sided quantile of Student's t, or of the normal distribution for inf `df`."""
    if math.isinf(df):
        return float(special.ndtri(1 - alpha / 2))
    return float(-special.stdtrit(df, alpha / 2))


@dataclass(frozen=True)
class Needed:
    """Trials or images that would change `cannot tell` to another verdict for this estimate.

    Attributes:
        trials: range of the number of trials of each side, up to `MOST_TRIALS`; None: no
            recommendation.
        images: range of the number of test images, up to `MOST_IMAGES`; None: no recommendation.
        missing: input that the results lack; None: the results are complete.
    """

    trials: tuple[int, int] | None = None
    images: tuple[int, int] | None = None
    missing: Missing | None = None


@dataclass(frozen=True)
class Verdict:
    """Verdict on one estimate.

    Attributes:
        estimate: difference and parts of its uncertainty.
        low, high: ends of the interval with confidence `1 - alpha`, in points; None: no interval.
        p: two-sided p-value, corrected if several comparisons were made; None: no interval.
        alpha: allowed error probability.
        outcome: one of the four outcomes.
        margin: largest difference that counts as no difference, in points.
        needed: trials or images that would change the outcome `CANNOT_TELL`; None for the other
            outcomes.
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
    """Return the allowed error probability of a verdict.

    Args:
        estimate: estimate, whose sources of variation determine the level.
        look: number of the look: 1 for the first verdict on these runs, 2 after the user added
            trials, and so on. The levels are 4 % + 0.5 % + 0.25 % + ... = 5 %.
    """
    if not estimate.over & (Over.TRIALS | Over.TASKS):
        return FIXED
    return FIRST if look <= 1 else LATER / 2 ** (look - 2)


def judge(
    estimate: Estimate, p: float | None = None, *, margin: float = MARGIN, look: int = 1
) -> Verdict:
    """Return the verdict on one estimate.

    The outcome is `better` or `worse` if the p-value is at most `level`. It is `no difference` if
    the whole interval is within the margin (two one-sided tests at `level / 2` each). Otherwise it
    is `cannot tell`.

    Args:
        estimate: difference and parts of its uncertainty.
        p: p-value corrected for the number of comparisons; None: the uncorrected p-value.
        margin: largest difference that counts as no difference, in points, >= 0.
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
    """Compute an interval from Poisson limits on the numbers of gains and losses.

    The limits for weighted sums are from Fay and Feuer (1997). For equal weights they are Garwood's
    (1936) limits. Zou and Donner's MOVER (2008) combines the limits.
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
    """Return the sum of the weights of counted events, and confidence limits for its mean."""
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
    """Return a quantile of the chi-squared distribution, much faster than scipy.stats."""
    return 2 * float(special.gammaincinv(df / 2, probability))


def _needed(estimate: Estimate, margin: float, look: int) -> Needed:
    """Compute the trials or images with which the interval excludes 0 or is within the margin.

    The true difference is assumed to be within one standard error of the estimate. The ends of the
    recommended range are the fewest and the most trials or images for any such difference.
    """
    if estimate.over & Over.TASKS:
        return Needed(missing=Missing.TASKS)
    alpha = level(estimate, look + 1)
    # A verdict needs a half-width below |difference| or below margin - |difference|.
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
    """Return the smallest number of trials or images whose interval is narrow enough.

    Return the largest number if no interval is narrow enough.
    """
    enough = np.flatnonzero(squares <= max(0.0, width) ** 2)
    return math.ceil(numbers[enough[0]] if len(enough) else numbers[-1])
