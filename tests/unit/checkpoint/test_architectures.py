"""Test that architectures are recognized from tensors and named in errors."""

import re

import pytest
import torch
import torchvision

from robust_backbones.archs import ARCHS, RESNETS
from robust_backbones.checkpoint import architectures as networks
from robust_backbones.core.errors import UserError


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


FOREIGN = {
    "torchvision": {
        "vit_b_16": "a ViT",
        "swin_t": "a Swin",
        "swin_v2_t": "a Swin",
        "convnext_tiny": "a ConvNeXt",
        "efficientnet_b0": "an EfficientNet or MobileNetV3",
        "mobilenet_v3_small": "an EfficientNet or MobileNetV3",
        "alexnet": "a VGG or AlexNet",
        "vgg11": "a VGG or AlexNet",
        "squeezenet1_0": "a SqueezeNet",
        "googlenet": "an Inception",
        "densenet121": "Differences from densenet161",
        "shufflenet_v2_x0_5": "Differences from shufflenet_v2_x1_0",
    },
    "timm": {
        "vit_tiny_patch16_224": "a ViT",
        "eva02_tiny_patch14_224": "a ViT",
        "swin_tiny_patch4_window7_224": "a Swin",
        "swinv2_tiny_window8_256": "a Swin",
        "convnext_atto": "a ConvNeXt",
        "convnextv2_atto": "a ConvNeXt",
        "efficientnet_b0": "an EfficientNet or MobileNetV3",
        "mobilenetv3_small_050": "an EfficientNet or MobileNetV3",
        "regnetx_002": "a RegNet",
        "inception_v3": "an Inception",
        "resnetv2_50": "a ResNetV2",
        "seresnet18": "a ResNet with attention",
        "legacy_seresnet18": "a ResNet with attention",
        "skresnet18": "a ResNet with attention",
        "resnet18d": "a ResNet with a deep stem",
        "resnet50c": "a ResNet with a deep stem",
        "mixer_s16_224": "match no supported network",
        "resnet26": "Differences from resnet",
    },
}


@pytest.mark.parametrize(
    ("library", "name"), [(library, name) for library in FOREIGN for name in FOREIGN[library]]
)
def test_other_networks_are_named(library, name):
    models = pytest.importorskip(library, reason=f"{library} is not installed")
    with torch.device("meta"):
        if library == "timm":
            network = models.create_model(name)
        else:
            more = {"init_weights": False} if name == "googlenet" else {}
            network = torchvision.models.get_model(name, **more)
    with pytest.raises(UserError, match="the network is not supported") as error:
        networks.recognize(network.state_dict(), None, "file")
    assert FOREIGN[library][name] in str(error.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("resnetblur50", "anti-aliased pooling"),
        ("timm/resnetaa50.a1h_in1k", "anti-aliased pooling"),
        ("leaky_resnet18", "an activation other than ReLU"),
        ("resnet50_silu", "an activation other than ReLU"),
        ("resnet50_elu", "an activation other than ReLU"),
        ("dilated_resnet50", "dilated"),
        ("resnet50_caffe", "strides in the 1x1"),
        *((name, "") for name in (*ARCHS, "resnet50.a1_in1k", "tv_resnet50", "resnet50_relu")),
    ],
)
def test_recorded_names_of_other_operations_are_refused(name, what):
    for key in ("arch", "architecture", "model_name"):
        if what:
            with pytest.raises(UserError, match=f"{key} '{name}' has {what}"):
                networks.check_operations({key: name}, "file")
        else:
            networks.check_operations({key: name}, "file")
