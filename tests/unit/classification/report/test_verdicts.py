"""Verdicts: each outcome, its error level, the exact interval, and recommended trials."""

import math

import numpy as np
import pytest
from scipy import stats

from classification.report import verdicts
from classification.report.trial_variance import VariancePart
from classification.report.verdicts import Discordant, Estimate, Missing, Outcome, Over

BOTH = Over.TRIALS | Over.IMAGES


def estimate(mean, error=0.5, df=10.0, over=BOTH, **more):
    return Estimate(mean, over, (3, 3), VariancePart(error**2, df), **more)


def fixed(gains, losses, images=1000):
    weights = 100 / images
    found = Discordant(np.full(gains, weights), np.full(losses, weights))
    return Estimate((gains - losses) * weights, Over.IMAGES, discordant=found, tests=images)


@pytest.mark.parametrize(
    "found, outcome",
    [
        (estimate(3.0), Outcome.BETTER),
        (estimate(-3.0), Outcome.WORSE),
        (estimate(1.0), Outcome.CANNOT_TELL),
        (estimate(0.0), Outcome.CANNOT_TELL),
        (estimate(0.1, 0.2), Outcome.NO_DIFFERENCE),
        (estimate(0.9, 0.2), Outcome.BETTER),  # small, but significant
        (estimate(0.8, 0.4), Outcome.CANNOT_TELL),
        (estimate(3.0, choice=(2.0, 0.0)), Outcome.CANNOT_TELL),
        (estimate(9.0, missing=Missing.TRIALS), Outcome.CANNOT_TELL),
    ],
)
def test_outcomes(found, outcome):
    assert verdicts.judge(found).outcome is outcome


def test_the_margin_is_an_option():
    assert verdicts.judge(estimate(0.5), margin=3).outcome is Outcome.NO_DIFFERENCE
    assert verdicts.judge(estimate(0.0, 0.0001), margin=0).outcome is Outcome.CANNOT_TELL


def test_interval_and_p_value_agree():
    found = estimate(1.4)
    assert found.p == pytest.approx(2 * stats.t.sf(2.8, 10), rel=1e-3)
    low, high = found.interval(found.p)
    assert low == pytest.approx(0, abs=1e-3) and high == pytest.approx(2.8, abs=1e-3)
    both = Estimate(1.0, BOTH, (3, 3), VariancePart(0.04, 3), VariancePart(0.09, 50))
    half = math.hypot(0.2 * stats.t.ppf(0.975, 3), 0.3 * stats.t.ppf(0.975, 50))
    assert both.interval(0.05) == pytest.approx((1 - half, 1 + half))


def test_a_corrected_p_decides():
    assert verdicts.judge(estimate(1.4), p=0.2).outcome is Outcome.CANNOT_TELL


def test_all_looks_together_allow_five_percent():
    levels = [verdicts.level(estimate(0), look) for look in range(1, 60)]
    assert levels[0] == 0.04 and sum(levels) == pytest.approx(0.05) and min(levels) > 0
    assert verdicts.level(fixed(3, 4), 1) == verdicts.level(fixed(3, 4), 7) == 0.05


def test_the_exact_interval_agrees_with_the_sign_test():
    """Up to 40 discordant images: no verdict where the exact test has none, and rarely
    none where it has one."""
    lost = []
    for total in range(1, 41):
        for gains in range(total + 1):
            theirs = stats.binomtest(gains, total).pvalue <= 0.05
            ours = verdicts.judge(fixed(gains, total - gains)).outcome in (
                Outcome.BETTER,
                Outcome.WORSE,
            )
            assert theirs or not ours, (gains, total)
            lost += [(gains, total)] if theirs and not ours else []
    assert len(lost) <= 8, lost


def test_networks_that_agree_on_all_images():
    found = verdicts.judge(fixed(0, 0))
    assert found.outcome is Outcome.NO_DIFFERENCE and found.p == 1 and found.low == found.high == 0


def test_the_exact_interval_covers_the_truth():
    rng, hits, runs = np.random.default_rng(0), 0, 600
    for _ in range(runs):
        gains, losses = rng.binomial(1000, (0.012, 0.004))
        low, high = fixed(gains, losses).interval(0.05)
        hits += low <= 0.8 <= high
    assert 0.94 <= hits / runs <= 0.99


@pytest.mark.parametrize(
    "found, trials", [(estimate(0.9), True), (estimate(0.0, 3.0), True), (fixed(6, 2), False)]
)
def test_needed_trials(found, trials):
    needed = verdicts.judge(found).needed
    first, last = needed.trials if trials else needed.images
    assert first <= last and first > (3 if trials else 1000)


def test_recommended_trials_decide_if_the_estimate_is_right():
    needed = verdicts.judge(estimate(1.1)).needed.trials
    again = Estimate(1.1, BOTH, (needed[1],) * 2, VariancePart(0.25 * 3 / needed[1], 40.0))
    assert verdicts.judge(again, look=2).outcome is Outcome.BETTER


@pytest.mark.parametrize(
    "missing, trials",
    [(Missing.TRIALS, (3, 10)), (Missing.PREDICTIONS, None), (Missing.TASKS, None)],
)
def test_missing_inputs_are_named(missing, trials):
    found = verdicts.judge(Estimate(5.0, missing=missing))
    assert found.needed.missing is missing and found.needed.trials == trials
    assert (found.low, found.high, found.p) == (None, None, None)
