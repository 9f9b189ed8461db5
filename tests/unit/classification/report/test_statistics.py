"""Corrections, lines and ranks against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from classification.report import statistics

RNG = np.random.default_rng


@pytest.mark.parametrize(
    "p, corrected",
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, None, 0.01], [0.02, None, 0.02]),
        ([], []),
    ],
)
def test_holm(p, corrected):
    assert statistics.holm(p) == pytest.approx(corrected)


def test_fit_agrees_with_scipy():
    x, y = RNG(2).random((2, 20))
    theirs = stats.linregress(x, y)
    assert statistics.fit(x, y) == pytest.approx((theirs.slope, theirs.intercept, theirs.rvalue**2))
    assert statistics.fit([1, 2, 3], [5, 5, 5])[2] == 0
    assert statistics.fit([1, 2], [1, 2]) is None and statistics.fit([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.parametrize("tasks, networks", [(4, 3), (12, 10)])
def test_the_critical_difference_agrees_with_ranges_of_normals(tasks, networks):
    """Mean ranks of equal networks have the variance k (k + 1) / (12 N)."""
    found = statistics.ranks(RNG(0).random((tasks, networks)))
    widest = np.quantile(np.ptp(RNG(1).normal(size=(400_000, networks)), axis=1), 0.95)
    expected = widest * np.sqrt(networks * (networks + 1) / (12 * tasks))
    assert found.critical == pytest.approx(expected, rel=3e-3)


def test_ranks():
    table = np.array([[9, 8, 7], [9, 8, 8], [5, 6, 4], [9, 1, 0]], float)
    found = statistics.ranks(table)
    assert found.means == (1.25, 1.875, 2.875)
    assert found.p == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)
    assert statistics.ranks(table[:1]) is None and statistics.ranks(table[:, :2]) is None
