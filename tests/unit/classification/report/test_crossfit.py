"""Cross-fitting in simulations with a known truth."""

import numpy as np
import pytest

from classification.report import crossfit

RNG = np.random.default_rng


def test_a_choice_among_equal_networks_gains_nothing():
    """Nine robust networks are as good as the standard one, so the best of them is not better."""
    rng, lucky, fair, by_trials = RNG(3), [], [], []
    for i in range(150):
        level = np.clip(0.8 + rng.normal(0, 0.01, (9, 3, 1)), 0, 1)
        right = rng.random((9, 3, 200)) < level
        lucky.append(right.mean((1, 2)).max() - 0.8)
        fair.append(crossfit.cross_fit(right, splits=5, seed=i).mean() - 0.8)
        by_trials.append(crossfit.cross_fit_accuracies(right.mean(2)).mean() - 0.8)
    errors = [np.std(v) / np.sqrt(len(v)) for v in (lucky, fair, by_trials)]
    assert np.mean(lucky) > 10 * errors[0]
    assert abs(np.mean(fair)) < 3 * errors[1] and abs(np.mean(by_trials)) < 3 * errors[2]


@pytest.mark.parametrize("labels", [None, np.arange(50) % 5])
def test_the_better_network_is_chosen(labels):
    right = np.zeros((3, 2, 50))
    right[2] = 1
    assert crossfit.cross_fit(right, labels) == pytest.approx(1)
    assert crossfit.cross_fit(right[:1], labels) == pytest.approx(0)


@pytest.mark.parametrize("trials", [1, 2, 4])
def test_against_a_loop(trials):
    right = RNG(1).random((4, trials, 30))  # no ties
    rng, expected = RNG(0), np.zeros((trials, 30))
    for _ in range(7):
        first = np.zeros(30, bool)
        first[rng.permutation(30)[:15]] = True
        for chooses in (first, ~first):
            for t in range(trials):
                others = [k for k in range(trials) if k != t or trials == 1]
                best = right[:, others][:, :, chooses].mean(2).sum(1).argmax()
                expected[t, ~chooses] += right[best, t, ~chooses] / 7
    assert crossfit.cross_fit(right, splits=7) == pytest.approx(expected)
