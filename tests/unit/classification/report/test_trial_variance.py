"""Variance components against closed forms, least squares and simulations."""

import numpy as np
import pytest
from scipy import stats

from classification import sampling
from classification.report import trial_variance
from classification.report.trial_variance import VariancePart

RNG = np.random.default_rng


def test_the_sum_of_two_parts_equals_welchs_test():
    a, b = RNG(0).normal(0, 1, 4), RNG(1).normal(0, 3, 6)
    found = trial_variance.combined([trial_variance.of_trials(row[None]) for row in (a, b)])
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert found.df == pytest.approx(theirs.df)
    assert found.variance == pytest.approx(((a.mean() - b.mean()) / theirs.statistic) ** 2)


@pytest.mark.parametrize(
    "parts, total",
    [
        ([], VariancePart(0, np.inf)),
        ([VariancePart(0, 2)], VariancePart(0, np.inf)),
        ([VariancePart(3, np.inf)], VariancePart(3, np.inf)),
        ([VariancePart(2, 4), VariancePart(2, 4)], VariancePart(4, 8)),
    ],
)
def test_combined(parts, total):
    assert trial_variance.combined(parts) == total


def test_identical_trials_have_no_variance():
    assert trial_variance.of_trials(np.full((1, 3), 80.01)).variance == 0
    assert trial_variance.of_trials(np.full((1, 1), 80.01)) is None


@pytest.mark.parametrize("networks, trials", [(2, 2), (9, 3), (9, 10)])
def test_inflation_equals_the_variance_among_equal_networks(networks, trials):
    z = RNG(5).standard_normal((20_000, networks, trials))
    chosen = (z.sum(2, keepdims=True) - z).argmax(1)
    means = np.take_along_axis(z, chosen[:, None], axis=1).mean((1, 2))
    found = trial_variance.inflation(networks, trials)
    assert found >= 0.95 * trials * (means**2).mean() and found < 1.15 * trials * (means**2).mean()
    assert trial_variance.inflation(1, trials) == trial_variance.inflation(networks, 1) == 1


@pytest.mark.parametrize("labels", [None, np.repeat(np.arange(60), [1, 3, 5, 7, 9, 11] * 10)])
def test_noise_of_trials_counts_once(labels):
    """The sum of both parts equals the variance of the estimate."""
    rng, images, trials = RNG(8), 360, 3
    means, said = [], []
    for _ in range(400):
        own = rng.normal(0, 0.3, (2, images))  # other images
        right = 0.7 + own[:, None] + rng.normal(0, 0.5, (2, trials, images))
        right = [row + rng.normal(0, 0.02, (trials, 1)) for row in right]  # other seeds
        shares, _ = sampling.deviations(right[0][0], labels)
        tables = [100 * (row @ shares)[None] for row in right]
        means.append(tables[0].mean() - tables[1].mean())
        seeds = trial_variance.combined(trial_variance.of_trials(table) for table in tables)
        said.append(seeds.variance + trial_variance.of_images(right, labels).variance)
    assert np.mean(said) == pytest.approx(np.var(means), rel=0.15)


def test_few_discordant_images_give_few_degrees_of_freedom():
    right = np.zeros((2, 1, 1000))
    right[0, 0, :5] = right[1, 0, 5:8] = 1
    assert trial_variance.of_images([*right]).df == pytest.approx(2 * 8, rel=0.05)


def test_classes_of_one_image_form_one_stratum():
    labels = np.array([0, 1, 2, 3, 4, 4, 4, 4])
    values = np.array([1.0, 0, 1, 0, 1, 1, 0, 0])
    shares, parts = sampling.deviations(values, labels)
    assert shares.sum() == pytest.approx(1)
    expected = (4 * values[:4].var(ddof=1) + values[4:].var(ddof=1) / 4) / 25
    assert parts.sum() == pytest.approx(expected)


def test_networks_that_differ_only_by_their_seeds():
    tables = [RNG(i).normal(70, 1, (400, 3)) for i in range(2)]
    assert trial_variance.of_networks(tables).variance < 0.1
    apart = [table + RNG(9).normal(0, 2, (400, 1)) for table in tables]
    assert trial_variance.of_networks(apart).variance == pytest.approx(4, rel=0.15)
