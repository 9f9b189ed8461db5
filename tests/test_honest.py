"""The best of several, chosen elsewhere than reported: on simulations whose truth is known."""

import numpy as np
import pytest

from classification.reports import honest, scatter, statistics

RNG = np.random.default_rng


def test_choosing_among_equals_is_no_gain():
    """Nine robust networks, all as good as the standard one: the best of them is not better."""
    rng, lucky, fair, by_trials = RNG(3), [], [], []
    for i in range(150):
        level = np.clip(0.8 + rng.normal(0, 0.01, (10, 3, 1)), 0, 1)
        right = (rng.random((10, 3, 200)) < level).astype(float)
        robust, standard = right[1:], right[:1]
        lucky.append(100 * (robust.mean((1, 2)).max() - standard.mean()))
        deltas = honest.deltas(robust, standard, splits=5, seed=i)
        fair.append(100 * deltas.mean())
        found = honest.over_trials(100 * robust.mean(2), 100 * standard.mean(2))
        by_trials.append(found.mean)
    errors = [np.std(v) / np.sqrt(len(v)) for v in (lucky, fair, by_trials)]
    assert np.mean(lucky) > 1.5 and np.mean(lucky) > 10 * errors[0]
    assert abs(np.mean(fair)) < 3 * errors[1] and abs(np.mean(by_trials)) < 3 * errors[2]


@pytest.mark.parametrize("robust, standard, trials", [(9, 1, 3), (36, 4, 3), (9, 1, 10)])
def test_equals_are_told_apart_in_five_percent_at_most(robust, standard, trials):
    rng, runs = RNG(9), 1000
    found = [
        honest.over_trials(
            rng.normal(70, 0.3, (robust, trials)), rng.normal(70, 0.3, (standard, trials))
        ).p
        for _ in range(runs)
    ]
    assert np.mean(np.array(found) < 0.05) < 0.055


def test_honest_interval_covers_the_truth():
    rng, hits, runs = RNG(5), 0, 100
    for i in range(runs):
        right = (rng.random((6, 3, 300)) < 0.7).astype(float)
        deltas = honest.deltas(right[1:], right[:1], splits=8, seed=i)
        table = 100 * right.mean(2)
        own = scatter.of_trials_alone(scatter.pooled(table), right)
        found = statistics.over_images(deltas, scatter=own, chosen=True, seed=i)
        hits += found.low <= 0 <= found.high
    assert hits / runs >= 0.92


def test_what_is_better_on_all_images_is_chosen():
    standard, robust = np.zeros((1, 2, 50)), np.zeros((3, 2, 50))
    robust[2] = 1
    assert (honest.deltas(robust, standard) == 1).all()
    labels = np.arange(50) % 5
    assert (honest.deltas(robust, standard, labels) == 1).all()
