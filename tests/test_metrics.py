"""Accuracies against scikit-learn's, intervals against SciPy's."""

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from classification.metrics import mean_per_class, top1, wilson
from robust_backbones.errors import UserError


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 5, generator=g)
    labels = (torch.rand(200, generator=g) ** 2 * 5).long()  # unequal classes
    predictions = logits.argmax(1)
    assert top1(logits, labels) == pytest.approx(100 * accuracy_score(labels, predictions))
    expected = 100 * balanced_accuracy_score(labels, predictions)
    assert mean_per_class(predictions, labels, 5) == pytest.approx(expected)


def test_bounds_are_exact():
    labels = torch.arange(7)
    assert top1(torch.eye(7), labels) == 100 and mean_per_class(labels, labels, 7) == 100
    assert top1(-torch.eye(7), labels) == 0 and mean_per_class((labels + 1) % 7, labels, 7) == 0


def test_no_images():
    with pytest.raises(UserError, match="accuracy of 0 images"):
        top1(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_a_class_without_images():
    labels = torch.tensor([0, 2])
    with pytest.raises(UserError, match=r"no image of class \[1, 3\]; every one of 4"):
        mean_per_class(labels, labels, 4)


@pytest.mark.parametrize("right, n", [(0, 1), (1, 1), (0, 100), (100, 100), (37, 50), (1, 5000)])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_wilson_is_scipys(right, n, confidence):
    truth = binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson(right, n, confidence) == pytest.approx(
        (100 * truth.low, 100 * truth.high), abs=1e-9
    )


def test_no_interval_of_nothing():
    with pytest.raises(UserError, match="accuracy of 0 images"):
        wilson(0, 0)
