"""Detection of catastrophic overfitting."""

import pytest

from classification.training import overfitting

COLLAPSED = [  # accuracies of the epochs, whether the last one is a collapse
    ([50, 48, 52, 20], True),
    ([50, 48, 52, 30], False),
    ([30, 5], True),
    ([0.2, 0.0], False),  # one image of 500: chance
    ([10, 4.5], True),
    ([10], False),
    ([0.0, 0.0], False),
]


@pytest.mark.parametrize("accuracies, collapsed", COLLAPSED)
def test_what_counts_as_a_collapse(accuracies, collapsed):
    assert overfitting.collapsed(accuracies, images=500) == collapsed


def test_few_images_are_no_evidence():
    assert overfitting.collapsed([30, 10], images=500) and not overfitting.collapsed(
        [30, 10], images=20
    )
