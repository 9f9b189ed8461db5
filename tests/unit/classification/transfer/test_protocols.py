"""Protocols: their parts, and names for changed parts."""

from dataclasses import asdict

import pytest

from classification.transfer import options as transfer_options
from classification.transfer import protocols
from robust_backbones.core.errors import UserError

CLEAN = dict(
    normalization="weights",
    batchnorm="frozen",
    probe="logistic",
    orientation="applied",
    selection="validation",
)
PAPER = dict(
    normalization="target",
    batchnorm="adapting",
    probe="sgd",
    orientation="ignored",
    selection="test",
)


@pytest.mark.parametrize(
    "mode, protocol, given, expected, name",
    [
        ("fixed-feature", "clean", {}, CLEAN, "clean"),
        ("fixed-feature", "paper", {}, PAPER, "paper"),
        ("full-network", "clean", {}, CLEAN | protocols.FULL_NETWORK, "clean"),
        ("full-network", "paper", {}, PAPER, "paper"),
        ("fixed-feature", "clean", {"probe": "sgd"}, CLEAN | {"probe": "sgd"}, "clean+probe=sgd"),
        ("fixed-feature", "clean", {"probe": "logistic"}, CLEAN, "clean"),
        (
            "full-network",
            "clean",
            {"selection": "test"},
            CLEAN | protocols.FULL_NETWORK | {"selection": "test"},
            "clean+selection=test",
        ),
        (
            "fixed-feature",
            "paper",
            {"batchnorm": "frozen", "normalization": "weights"},
            PAPER | {"batchnorm": "frozen", "normalization": "weights"},
            "paper+normalization=weights+batchnorm=frozen",
        ),
    ],
)
def test_the_parts_of_a_protocol(mode, protocol, given, expected, name):
    found = protocols.compose(mode, protocol, given)
    assert asdict(found) == expected
    assert protocols.name_of(mode, protocol, found) == name
    assert all(getattr(found, part) in values for part, values in protocols.PARTS.items())


@pytest.mark.parametrize(
    "mode, given, message",
    [
        ("full-network", {"probe": "sgd"}, "--probe with --mode full-network: only --mode fixed"),
        ("full-network", {"batchnorm": "frozen", "probe": "knn"}, "--batchnorm and --probe"),
        ("fixed-feature", {"batchnorm": "adapting"}, "--probe logistic with --batchnorm adapting"),
        ("fixed-feature", {"batchnorm": "adapting", "probe": "knn"}, "cannot be cached"),
    ],
)
def test_contradictory_parts(mode, given, message):
    with pytest.raises(UserError, match=message):
        protocols.compose(mode, "clean", given)


DEFAULTS = [  # options, number of trials
    ([], 3),  # the seed draws the images that choose the penalty
    (["--probe", "knn"], 3),
    (["--penalty", "1"], 1),
    (["--probe", "knn", "--neighbors", "5"], 1),
    (["--penalty", "1", "--shots", "5"], 3),
    (["--penalty", "1", "--fraction", "0.5"], 3),
    (["--penalty", "1", "--fraction", "1"], 1),  # all images
    (["--probe", "sgd"], 3),
    (["--mode", "full-network"], 3),
    (["--protocol", "paper"], 3),
    (["--mode", "full-network", "--trials", "1"], 1),
]


@pytest.mark.parametrize(("options", "trials"), DEFAULTS)
def test_three_trials_wherever_a_seed_matters(options, trials):
    words = ["--weights", "w", "--dataset", "digits", *options]
    args = transfer_options.parser("").parse_args(words)
    assert transfer_options.trials(args) == trials
