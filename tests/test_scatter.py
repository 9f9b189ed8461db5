"""How much trials scatter, against least squares and simulations."""

import numpy as np
import pytest

from classification.reports import scatter, statistics

RNG = np.random.default_rng


def test_pooled_spread_is_that_of_the_analysis_of_variance():
    """What is left of a table of networks and seeds after both; of two networks, the pairs'."""
    table = RNG(4).normal(size=(5, 3)) + 10 * RNG(5).normal(size=3)
    found = scatter.pooled(table)
    networks, seeds = np.indices(table.shape).reshape(2, -1)
    design = np.column_stack(
        [np.ones(15), *(networks == i for i in range(1, 5)), *(seeds == i for i in range(1, 3))]
    )
    _, residual, rank, _ = np.linalg.lstsq(design, table.ravel(), rcond=None)
    assert found.df == 15 - rank
    assert found.sd == pytest.approx(np.sqrt(2 * residual[0] / found.df))
    pair = scatter.pooled(table[:2])
    assert pair.sd == pytest.approx((table[0] - table[1]).std(ddof=1)) and pair.df == 2
    robust, standard = ({i: v for i, v in enumerate(row)} for row in table[:2])
    assert statistics.over_trials(robust, standard, pair) == statistics.over_trials(
        robust, standard
    )
    assert scatter.pooled(table[:1]) is None and scatter.pooled(table[:, :1]) is None


def test_images_part_is_taken_out():
    """Trials that differ only in what becomes of each image have no spread of their own."""
    rng, alone, whole = RNG(8), [], []
    for _ in range(60):
        right = (rng.random((10, 3, 400)) < 0.7).astype(float)
        found = scatter.pooled(100 * right.mean(2))
        whole.append(found.sd)
        alone.append(scatter.of_trials_alone(found, right).sd)
    expected = 100 * np.sqrt(2 * 0.7 * 0.3 / 400)
    assert np.mean(whole) == pytest.approx(expected, rel=0.1)
    assert np.median(alone) < 0.4 * expected


def test_trials_part_stays():
    rng, found = RNG(8), []
    for _ in range(60):
        level = 0.7 + rng.normal(0, 0.03, (10, 3, 1))
        right = (rng.random((10, 3, 400)) < level).astype(float)
        spread = scatter.pooled(100 * right.mean(2))
        found.append(scatter.of_trials_alone(spread, right).sd)
    assert np.mean(found) == pytest.approx(3 * np.sqrt(2), rel=0.1)


def test_mean_over_classes_scatters_by_classes():
    labels = np.repeat([0, 1], [20, 380])
    rng, alone = RNG(8), []
    for _ in range(60):
        right = (rng.random((10, 3, 400)) < 0.7).astype(float)
        means = (right[..., :20].mean(2) + right[..., 20:].mean(2)) / 2
        alone.append(scatter.of_trials_alone(scatter.pooled(100 * means), right, labels).sd)
    assert np.median(alone) < 0.4 * 100 * np.sqrt(2 * 0.7 * 0.3 * (1 / 20 + 1 / 380) / 4)


def test_with_few_degrees_of_freedom_nothing_is_taken_out():
    right = (RNG(0).random((2, 3, 50)) < 0.5).astype(float)
    spread = scatter.pooled(100 * right.mean(2))
    assert scatter.of_trials_alone(spread, right) == spread


def test_error_of_a_mean():
    spread = scatter.Spread(3.0, 8)
    assert spread.error(9) == 1
    assert spread.error(3, chosen=True) == pytest.approx(3 * np.sqrt(1 / 3 + 1 / 2))
