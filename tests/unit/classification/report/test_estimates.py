"""Estimates on simulated studies, including those that an older method failed on."""

import numpy as np
import pytest
from scipy import stats

from classification.report import estimates, verdicts
from classification.report.verdicts import Missing, Outcome, Over

RNG = np.random.default_rng


def study(rng, sides, trials, images, scatter):
    """Equally good networks. `scatter` is the standard deviation over seeds, points."""
    shared = rng.normal(0, 0.85, images)
    found = []
    for networks, sd in zip(sides, scatter, strict=True):
        level = 0.8 + sd / 100 * rng.normal(size=(networks, trials, 1))
        own = shared + rng.normal(0, 0.4, (networks, 1, images))
        latent = own + rng.normal(0, 0.35, (networks, trials, images))
        found.append(latent < stats.norm.ppf(np.clip(level, 0.01, 0.99)))
    return found


# An older method was wrong in 42, 27, 21, 9 and 65 % of these studies.
@pytest.mark.parametrize(
    "sides, trials, images, scatter, classes, predictions",
    [
        ((1, 1), 1, 1000, (1.3, 1.3), False, True),
        ((9, 1), 1, 1000, (1.3, 1.3), False, True),
        ((9, 1), 3, 400, (0.5, 5.3), False, True),
        ((9, 1), 3, 300, (0.1, 0.1), True, True),
        ((9, 1), 3, 400, (0.1, 0.1), False, False),
    ],
)
def test_equal_networks_get_a_verdict_in_at_most_five_percent(
    sides, trials, images, scatter, classes, predictions
):
    rng, wrong, covered, runs = RNG(0), 0, 0, 300
    labels = np.repeat(np.arange(60), images // 60) if classes else None
    for _ in range(runs):
        ours, theirs = study(rng, sides, trials, images, scatter)
        if predictions:
            found = estimates.from_predictions(ours, theirs, labels)
        else:
            found = estimates.from_accuracies(100 * ours.mean(2), 100 * theirs.mean(2), images)
        verdict = verdicts.judge(found)
        wrong += verdict.outcome in (Outcome.BETTER, Outcome.WORSE)
        covered += verdict.low is None or verdict.low <= 0 <= verdict.high
    assert wrong / runs <= 0.08 and covered / runs >= 0.92
    assert trials > 1 or not wrong


def test_one_seeded_trial_gives_no_interval():
    right = RNG(0).random((1, 1, 100)) < 0.8
    assert estimates.from_predictions(right, right).missing is Missing.TRIALS
    assert estimates.from_predictions(right, right, fixed=(True, False)).missing is Missing.TRIALS
    assert estimates.from_accuracies(np.array([[90.0]]), np.array([[80.0]])).missing
    two = np.array([[90.0, 91.0]])
    assert estimates.from_accuracies(two, two - 10).missing is Missing.TRIALS


def test_the_interval_of_runs_without_a_seed_is_over_images():
    rng = RNG(1)
    ours, theirs = rng.random((1, 1, 900)) < 0.9, rng.random((1, 1, 900)) < 0.7
    found = estimates.from_predictions(ours, theirs, fixed=(True, True))
    assert found.over is Over.IMAGES and verdicts.judge(found).outcome is Outcome.BETTER
    assert found.mean == pytest.approx(100 * (ours.mean() - theirs.mean()))


def test_identical_trials_do_not_narrow_the_interval():
    """4 of 1,000 images differ, all in favor of one side. An older method had p = 0.035 for one
    trial and 0.019 for three copies of it."""
    ours, theirs = np.ones((1, 1, 1000)), np.ones((1, 1, 1000))
    theirs[..., :4] = 0
    once = estimates.from_predictions(ours, theirs, fixed=(True, True))
    thrice = estimates.from_predictions(ours.repeat(3, 1), theirs.repeat(3, 1))
    assert once.p == thrice.p == pytest.approx(0.125)
    same = np.full((1, 3), 80.01), np.full((1, 3), 80.0)
    assert estimates.from_accuracies(*same).missing is Missing.PREDICTIONS


def test_without_predictions_it_equals_welchs_test():
    a, b = np.array([[90.0, 91.0, 93.0]]), np.array([[88.0, 88.5, 89.0, 90.0]])
    found, theirs = (estimates.from_accuracies(a, b), stats.ttest_ind(a[0], b[0], equal_var=False))
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-3) and found.over is Over.TRIALS
    assert found.interval(0.05) == pytest.approx(tuple(theirs.confidence_interval()))


def test_mean_over_classes():
    labels = np.repeat([0, 1], [10, 90])
    ours = np.where(labels == 0, 1, 0)[None, None].repeat(3, 1)
    found = estimates.from_predictions(ours, np.zeros_like(ours), labels)
    assert found.mean == pytest.approx(50)
    assert estimates.from_predictions(ours, np.zeros_like(ours)).mean == pytest.approx(10)


@pytest.mark.parametrize(
    "means, outcome",
    [
        ([10.0, 10.1, 9.9, 10.2, 9.8], Outcome.BETTER),
        ([10.0, 10.1], Outcome.CANNOT_TELL),
        ([], Outcome.CANNOT_TELL),
        ([5.0, -5.0, 3.0, -2.0], Outcome.CANNOT_TELL),
        ([0.1, -0.1, 0.0, 0.1], Outcome.NO_DIFFERENCE),
    ],
)
def test_all_tasks(means, outcome):
    assert verdicts.judge(estimates.over_tasks(means)).outcome is outcome


def test_all_tasks_equal_students_test():
    means = [1.0, 2.5, 0.5, 2.0]
    found, theirs = estimates.over_tasks(means), stats.ttest_1samp(means, 0)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-3)
    assert found.interval(0.05) == pytest.approx(tuple(theirs.confidence_interval()))


@pytest.mark.parametrize("networks", [1, 2, 9])
def test_maximum_of_normals(networks):
    drawn = RNG(2).normal(size=(200_000, networks)).max(1)
    assert estimates.maximum_of_normals(networks) == pytest.approx(
        (drawn.mean(), drawn.var()), abs=0.01
    )
