"""Test that architectures are recognized from tensors and named in errors."""

import re

import pytest
import torch
import torchvision

from robust_backbones.checkpoint import architectures as networks
from robust_backbones.core.errors import UserError
from robust_backbones.zoo import ARCHS, RESNETS


def shapes(arch, num_classes=7):
    with torch.device("meta"):
        return networks.build_network(arch, num_classes).state_dict()


@pytest.mark.parametrize("arch", ARCHS)
def test_each_is_recognized_and_equals_torchvisions(arch):
    tensors = shapes(arch)
    assert networks.recognize(tensors, None, "file") == arch
    assert networks.recognize(tensors, arch, "file") == arch
    if arch != "wide_resnet50_4":
        with torch.device("meta"):
            expected = torchvision.models.get_model(arch, num_classes=7).state_dict()
        assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize("arch", RESNETS)
def test_a_row_describes_its_network(arch):
    tensors, row = shapes(arch), ARCHS[arch]
    assert tensors["fc.weight"].shape[1] == row.feature_dim
    assert tensors[f"layer1.{row.blocks[0] - 1}.conv2.weight"].shape[2:] == (3, 3)
    last = "conv3" if row.bottleneck else "conv2"
    assert tensors[f"layer1.0.{last}.weight"].shape[0] == row.res2_channels
    assert str(row.depth) in arch.replace("_32x4d", "").replace("_64x4d", "")


@pytest.mark.parametrize("arch", ARCHS)
def test_only_head_and_counters_may_be_missing(arch):
    tensors = shapes(arch)
    head = ARCHS[arch].head + "."
    bare = {
        k: v
        for k, v in tensors.items()
        if not k.startswith(head) and not k.endswith(networks.BATCH_COUNTER)
    }
    assert networks.recognize(bare, None, "file") == arch
    name = next(k for k in reversed(bare) if k.endswith("weight"))
    cases = {
        f"missing '{name}'": {k: v for k, v in tensors.items() if k != name},
        f"'{name}' has shape": tensors | {name: torch.empty(bare[name].shape[0] + 1)},
        "unknown 'another.weight'": tensors | {"another.weight": torch.empty(1)},
    }
    for message, spoiled in cases.items():
        with pytest.raises(UserError, match=f"Differences from {arch}: .*{re.escape(message)}"):
            networks.recognize(spoiled, None, "file")


def test_a_wrong_expectation_names_the_right_architecture():
    with pytest.raises(
        UserError, match="network is a resnet34, not a resnet50. Pass --arch resnet34"
    ):
        networks.recognize(shapes("resnet34"), "resnet50", "file")
    with pytest.raises(
        UserError, match="architecture 'resnet9' is unknown. Did you mean resnet18 or"
    ):
        networks.recognize(shapes("resnet34"), "resnet9", "file")
    with pytest.raises(UserError, match="'fc.weight' and 'fc.bias' have different numbers"):
        networks.recognize(shapes("resnet18") | {"fc.bias": torch.empty(3)}, None, "file")
