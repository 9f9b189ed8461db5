"""Class names, their order, image size and image range of a classifier and a dataset."""

import pytest
import torch

from classification.known_classes import (
    check_names,
    check_range,
    class_names,
    size_warnings,
    unfinished_warnings,
)
from robust_backbones.checkpoint.io import save_file
from robust_backbones.checkpoint.read import read_weights
from robust_backbones.core.errors import UserError
from tests.support.transfer_runs import write_network

PETS = ("cat", "dog", "hen")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (PETS, None),
        (
            ("dog", "cat", "hen"),
            "w.pt: class 0 is 'cat', but 'dog' in pets. .* in a different order",
        ),
        (("cat", "dog", "pig"), "class 2 is 'hen', but 'pig' in pets. Choose the data that"),
        (("cat", "dog"), "class 2 is 'hen', but 'missing' in pets"),
        ((*PETS, "pig"), "class 3 is 'missing', but 'pig' in pets"),
    ],
)
def test_names_and_their_order(found, message):
    if message is None:
        check_names(PETS, found, "w.pt", "pets")
    else:
        with pytest.raises(UserError, match=message):
            check_names(PETS, found, "w.pt", "pets")


def test_accents_that_macos_decomposes_are_the_same():
    check_names(["caf\u00e9"], ["cafe\u0301"], "w.pt", "food")


@pytest.mark.parametrize("names", ["cat", [1, 2], {"cat": 0}, 3])
def test_names_of_a_wrong_type(names):
    with pytest.raises(UserError, match="class_names are .*must be a list of names"):
        class_names({"class_names": names})
    assert class_names({}) is None


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        (None, [0.0, 4095.0], None),  # 8-bit images are not scaled
        ([0.0, 4095.0], [0.0, 4095.0], None),
        ([0.0, 4095.0], None, "--image-range is not given, .* Pass --image-range 0 4095"),
        ([0.0, 4095.0], [0.0, 65535.0], "--image-range is 0 65535, .* Pass --image-range 0 4095"),
        ("wide", None, "image_range is 'wide'. It must be two numbers"),
        ([1.0], None, "must be two numbers"),
    ],
)
def test_images_are_scaled_as_in_training(trained, given, message):
    metadata = {} if trained is None else {"image_range": trained}
    if message is None:
        check_range(metadata, given, "w.pt")
    else:
        with pytest.raises(UserError, match=message):
            check_range(metadata, given, "w.pt")


def test_another_image_size_gives_a_warning():
    assert size_warnings(None, 64, "w.pt") == size_warnings(64, 64, "w.pt") == []
    (found,) = size_warnings(32, 64, "w.pt")
    assert "64 x 64 pixels, but w.pt was trained with 32 x 32" in found["message"]


@pytest.mark.parametrize(
    ("run", "unfinished"),
    [
        ({"epoch": 2, "history": [{}, {}]}, True),
        ({"epoch": 0, "history": []}, True),
        ({"epoch": 3, "history": [{}, {}, {}]}, False),
        ({"epoch": 2, "history": [{}, {"rolled_back": 1}]}, False),
        ({"epoch": 2, "history": torch.zeros(2)}, True),
        ({"epoch": "2"}, False),
        ({}, False),  # not a checkpoint of a run
    ],
)
def test_unfinished_pretraining_gives_a_warning(tmp_path, run, unfinished):
    path = write_network(tmp_path / "net.pt", epochs=3)
    save_file(torch.load(path, weights_only=True) | run, path)
    found = unfinished_warnings(read_weights(path), "net.pt")
    assert [w["check"] for w in found] == ["unfinished"] * unfinished
    assert all(f"net.pt is unfinished ({run['epoch']} of 3 epochs)" in w["message"] for w in found)
