"""Networks of a comparison: labels, twins, and networks that cannot be compared."""

import pytest

from classification.compare.networks import comparable, describe
from robust_backbones.core.errors import UserError
from tests.support.compared_networks import network

STANDARD, ROBUST = network("a.pt"), network("b.pt", eps=1.0)


@pytest.mark.parametrize(
    ("networks", "labels"),
    [
        ([STANDARD, ROBUST], ["standard", "eps 1"]),
        ([STANDARD, network("b.pt", eps=4 / 255, constraint="linf")], ["standard", "eps 4/255"]),
        (
            [STANDARD, network("c.pt", arch="resnet50"), ROBUST],
            ["standard resnet18", "standard resnet50", "eps 1"],
        ),
        (
            [STANDARD, network("x/checkpoint.pt", eps=1), network("y/checkpoint.pt", eps=1)],
            ["standard", "eps 1 l2 resnet18 x", "eps 1 l2 resnet18 y"],
        ),
    ],
)
def test_labels_are_unique(networks, labels):
    assert [n.label for n in comparable(networks)] == labels


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([STANDARD], "only standard networks.*robust twin"),
        ([ROBUST, network("c.pt", eps=3.0)], "only robust networks.*standard twin"),
        ([STANDARD, ROBUST, network("b.pt", eps=1.0)], "are the same file"),
        ([STANDARD, network("b.pt", eps=1.0, pretrained_on="imagenet")], "same pretraining data"),
        ([network("a.pt", pretrained_on=""), ROBUST], "pretraining not recorded"),
    ],
)
def test_networks_that_cannot_be_compared(networks, message):
    with pytest.raises(UserError, match=message):
        comparable(networks)


@pytest.mark.parametrize(
    ("robust", "words"),
    [
        (ROBUST, "twins"),
        (network("b.pt", eps=1.0, source={"epochs": 30}), "more than eps: epochs"),
        (network("b.pt", eps=1.0, arch="resnet50"), "architecture"),
        (network("b.pt", eps=1.0, image_size=224), "image size"),
    ],
)
def test_twins_and_others(robust, words):
    assert words in describe(comparable([STANDARD, robust]))[-1]


def test_a_published_twin_may_have_other_pretraining_data():
    data = {"robust://swin_large_linf_eps4_liu2023": ("imagenet", 4 / 255)}
    data["timm://swin_large_patch4_window7_224.ms_in22k_ft_in1k"] = ("imagenet22k+imagenet", 0.0)
    both = [
        network(name, eps=eps, pretrained_on=origin, source={"dataset": origin})
        for name, (origin, eps) in data.items()
    ]
    assert describe(comparable(both))[-1].endswith("more than eps: pretraining data.")


def test_unrecorded_training_is_named():
    found = comparable([network("a.pt", assumed_standard=True), ROBUST])
    assert any("does not record how it was trained" in line for line in describe(found))
