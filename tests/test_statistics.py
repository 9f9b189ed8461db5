"""Statistics against scipy, closed forms, and simulations whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from classification.reports import statistics

RNG = np.random.default_rng


def simulated(rng, *, networks=1, trials=3, images=400, mean=0.0, by_trial=0.01, by_image=0.3):
    """Differences with a part of the seed, a part of the image, and noise."""
    shape = (networks, trials, images)
    parts = rng.normal(0, by_trial, (networks, trials, 1)) + rng.normal(0, by_image, (1, 1, images))
    return mean + parts + rng.normal(0, 0.1, shape)


@pytest.mark.parametrize("by_trial, by_image", [(0.0, 0.4), (0.05, 0.1), (0.02, 0.4), (0.2, 0.01)])
@pytest.mark.parametrize("trials", [3, 10])
def test_interval_covers_the_truth(by_trial, by_image, trials, monkeypatch):
    """Whichever part dominates; 200 simulations of 95 % vary by about 1.5 %."""
    monkeypatch.setattr(statistics, "DRAWS", 2000)
    rng, hits, runs = RNG(7), 0, 200
    for _ in range(runs):
        deltas = simulated(rng, trials=trials, mean=0.1, by_trial=by_trial, by_image=by_image)[0]
        found = statistics.over_images(np.round(deltas, 1), seed=int(rng.integers(1e9)))
        hits += found.low <= 10 <= found.high
    assert hits / runs >= 0.92


def test_of_one_trial_it_is_the_bootstrap_of_scipy():
    deltas = RNG(0).integers(-1, 2, (1, 500)).astype(float)
    found = statistics.over_images(deltas)
    theirs = stats.bootstrap((deltas[0],), np.mean, method="percentile", rng=0).confidence_interval
    assert found.mean == pytest.approx(100 * deltas.mean())
    assert [found.low, found.high] == pytest.approx([100 * v for v in theirs], abs=0.4)
    assert found.over == statistics.IMAGES


def test_mean_over_classes():
    labels = np.repeat([0, 1], [10, 90])
    noisy = RNG(6).integers(-1, 2, (1, 100)).astype(float)
    found = statistics.over_images(noisy, labels)
    parts = [noisy[0, labels == i] for i in (0, 1)]
    half = 1.96 * np.sqrt(sum(v.var(ddof=1) / len(v) for v in parts)) / 2
    middle = np.mean([v.mean() for v in parts])
    ends = [100 * (middle - half), 100 * (middle + half)]
    assert [found.low, found.high] == pytest.approx(ends, abs=1.5)
    deltas = np.stack([np.where(labels == 0, 1.0, 0.0)] * 2)
    found = statistics.over_images(deltas, labels)
    assert (found.mean, found.low, found.high) == (50, 50, 50)
    assert statistics.over_images(deltas).mean == pytest.approx(10)


def test_many_different_values_are_drawn_as_a_normal():
    deltas = RNG(1).normal(0.1, 1, (1, 1000))
    found = statistics.over_images(deltas)
    half = 100 * 1.96 * deltas.std() / np.sqrt(1000)
    assert [found.low, found.high] == pytest.approx(
        [found.mean - half, found.mean + half], abs=0.06 * half
    )


def test_paired_trials_are_a_t_test():
    a, b = {0: 90.0, 1: 91.0, 2: 93.0}, {2: 90.0, 0: 88.5, 1: 89.0, 7: 50.0}
    found = statistics.over_trials(a, b)
    theirs = stats.ttest_rel([90, 91, 93], [88.5, 89, 90])
    assert found.p == pytest.approx(theirs.pvalue) and found.over == statistics.TRIALS
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_other_seeds_are_welchs_test():
    found = statistics.over_trials({0: 90.0, 1: 91.0, 2: 93.0}, {5: 88.0, 6: 88.5})
    theirs = stats.ttest_ind([90, 91, 93], [88, 88.5], equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue) and found.over == statistics.UNPAIRED
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_one_trial_says_nothing():
    found = statistics.over_trials({0: 90.0}, {0: 80.0})
    assert (found.mean, found.low, found.p) == (10, None, None)
    assert statistics.verdict(found.mean, found.p) == "cannot be said"


@pytest.mark.parametrize("p, corrected", [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
    ([0.5, 0.9], [1.0, 1.0]),
    ([0.02, None, 0.01], [0.02, None, 0.02]),
    ([], []),
])  # fmt: skip
def test_holm(p, corrected):
    assert statistics.holm(p) == pytest.approx(corrected)


@pytest.mark.parametrize("mean, p, words", [
    (1.0, 0.01, "robust better"), (-1.0, 0.01, "robust worse"), (5.0, 0.06, "no difference"),
])  # fmt: skip
def test_verdicts(mean, p, words):
    assert statistics.verdict(mean, p) == words


def test_fit_is_that_of_scipy():
    x, y = RNG(2).random((2, 20))
    theirs = stats.linregress(x, y)
    assert statistics.fit(x, y) == pytest.approx((theirs.slope, theirs.intercept, theirs.rvalue**2))
    assert statistics.fit([1, 2, 3], [5, 5, 5])[2] == 0
    assert statistics.fit([1, 2], [1, 2]) is None and statistics.fit([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.parametrize("tasks, networks", [(4, 3), (12, 10)])
def test_critical_difference_is_that_of_normal_ranges(tasks, networks):
    """Mean ranks of equal networks scatter with variance k (k + 1) / (12 N)."""
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
