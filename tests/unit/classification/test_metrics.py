"""Accuracies against scikit-learn's, intervals against SciPy's."""

import pytest
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from classification.metrics import (
    METRICS,
    at_chance,
    confusion,
    interval,
    mean_per_class,
    top1,
    wilson,
)
from robust_backbones.core.errors import UserError


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    g = torch.Generator().manual_seed(seed)
    predictions = torch.randint(0, 5, (200,), generator=g)
    labels = (torch.rand(200, generator=g) ** 2 * 5).long()  # unequal classes
    assert top1(predictions, labels) == pytest.approx(100 * accuracy_score(labels, predictions))
    expected = 100 * balanced_accuracy_score(labels, predictions)
    assert mean_per_class(predictions, labels, 5) == pytest.approx(expected)


def test_bounds_are_exact():
    labels = torch.arange(7)
    assert top1(labels, labels) == 100 and mean_per_class(labels, labels, 7) == 100
    assert top1((labels + 1) % 7, labels) == 0 and mean_per_class((labels + 1) % 7, labels, 7) == 0


def test_no_images():
    with pytest.raises(UserError, match="accuracy of 0 images"):
        top1(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


def test_a_class_without_images():
    labels = torch.tensor([0, 2])
    with pytest.raises(UserError, match=r"no images of classes \[1, 3\].* of the 4 classes"):
        mean_per_class(labels, labels, 4)


@pytest.mark.parametrize("right, n", [(0, 1), (1, 1), (0, 100), (100, 100), (37, 50), (1, 5000)])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_wilson_is_scipys(right, n, confidence):
    truth = binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson(right, n, confidence) == pytest.approx(
        (100 * truth.low, 100 * truth.high), abs=1e-9
    )


@pytest.mark.parametrize(
    "right, n, classes", [(36, 360, 10), (50, 360, 10), (44, 360, 10), (0, 50, 10), (5, 5, 2)]
)
def test_chance_is_scipys_binomial_test(right, n, classes):
    truth = binomtest(right, n, 1 / classes, alternative="greater").pvalue
    assert at_chance(right, n, classes) == (truth > 0.05)


def test_too_few_images_cannot_be_told_from_chance():
    assert not at_chance(0, 4, 2) and not at_chance(3, 4, 2)  # even 4 of 4 may be chance


def test_no_interval_of_nothing():
    with pytest.raises(UserError, match="accuracy of 0 images"):
        wilson(0, 0)


def test_confusion_is_scikit_learns():
    g = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 6, (2, 300), generator=g)
    expected = confusion_matrix(labels, predictions, labels=range(7))
    assert confusion(predictions, labels, 7).tolist() == expected.tolist()


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_interval_of_many_images_is_the_normal_interval(share):
    n = 4000
    labels = torch.arange(n) % 4
    right = torch.rand(n, generator=torch.Generator().manual_seed(0)) < share
    predictions = torch.where(right, labels, (labels + 1) % 4)
    p = right.double().mean().item()
    half = norm.ppf(0.975) * (p * (1 - p) / n) ** 0.5
    expected = (100 * (p - half), 100 * (p + half))
    for metric in METRICS:  # equal classes: both have the same spread, nearly
        found = interval(predictions[None], labels, metric)
        assert found == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("right", "n"), [(50, 50), (0, 20), (48, 50), (359, 360)])
def test_of_one_trial_it_is_wilsons_interval(right, n):
    labels = torch.zeros(n, dtype=torch.int64)
    predictions = (torch.arange(n) >= right).long()
    assert interval(predictions[None], labels, "top1") == pytest.approx(wilson(right, n), abs=0.1)


def test_trials_are_averaged_image_by_image():
    """Two trials that are right on complementary images are certain together."""
    labels = torch.zeros(50, dtype=torch.int64)
    first = torch.arange(50) % 2
    found = interval(torch.stack([first, 1 - first]), labels, "top1")
    assert found == pytest.approx((50, 50))
    low, high = interval(first[None], labels, "top1")
    assert low < 45 and high > 55


# Settings in which the percentile bootstrap of 2,000 draws covered 75, 87, 90.5 and 92.5 %.
@pytest.mark.parametrize(
    ("sizes", "accuracy", "metric"),
    [
        ([50], 0.97, "top1"),
        ([360], 0.99, "top1"),
        ([1, 2, 3, 4, 5] * 8 + [50] * 60, 0.95, "mean_per_class"),
        ([1, 2, 3, 4, 5] * 20, 0.9, "mean_per_class"),
    ],
)
def test_intervals_near_the_end_cover_the_truth(sizes, accuracy, metric):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator, hits, runs = torch.Generator().manual_seed(1), 0, 600
    for _ in range(runs):
        right = torch.rand(len(labels), generator=generator) < accuracy
        low, high = interval(torch.where(right, labels, labels + 1)[None], labels, metric)
        hits += low <= 100 * accuracy <= high
    assert hits / runs >= 0.92
