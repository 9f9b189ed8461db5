"""When training on one step is said to have collapsed."""

import pytest

from classification.training import overfitting

COLLAPSED = [  # guard's accuracies, whether the last is a collapse
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


def test_few_images_prove_little():
    assert overfitting.collapsed([30, 10], images=500) and not overfitting.collapsed(
        [30, 10], images=20
    )


def test_the_attack_is_stronger_at_the_same_radius():
    found = overfitting.attack(
        {"constraint": "linf", "eps": 0.1, "steps": 1, "random_start": False}
    )
    assert found == {
        "constraint": "linf",
        "eps": 0.1,
        "steps": 10,
        "random_start": True,
        "step_size": pytest.approx(0.025),
        "use_best": True,
    }
