"""Test that architectures are recognized from tensors and named in errors."""

import re

import pytest
import torch
import torchvision

from robust_backbones import timm_networks
from robust_backbones.archs import ARCHS, RESNETS
from robust_backbones.checkpoint import architectures as networks
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.meta_device import meta_device


def shapes(arch, num_classes=7):
    with meta_device():
        return networks.build_network(arch, num_classes).state_dict()


@pytest.mark.parametrize("arch", ARCHS)
def test_each_is_recognized_and_equals_torchvisions(arch):
    tensors = shapes(arch)
    assert networks.recognize(tensors, None, "file").arch == arch
    assert networks.recognize(tensors, arch, "file").arch == arch
    if arch != "wide_resnet50_4":
        with meta_device():
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
    assert networks.recognize(bare, None, "file").arch == arch
    name = next(k for k in reversed(bare) if k.endswith("weight"))
    cases = {
        f"missing '{name}'": {k: v for k, v in tensors.items() if k != name},
        f"'{name}' has shape": tensors | {name: torch.empty(bare[name].shape[0] + 1)},
        "unknown 'another.weight'": tensors | {"another.weight": torch.empty(1)},
    }
    for message, spoiled in cases.items():
        with pytest.raises(
            UserError, match=f"most similar one is {arch}. Differences: .*{re.escape(message)}"
        ):
            networks.recognize(spoiled, None, "file")


def test_a_wrong_expectation_names_the_right_architecture():
    with pytest.raises(
        UserError, match="network is a resnet34, not a resnet50. Pass --arch resnet34"
    ):
        networks.recognize(shapes("resnet34"), "resnet50", "file")
    with pytest.raises(
        UserError, match="architecture 'resnet9' is unknown. Did you mean resnet18,"
    ):
        networks.recognize(shapes("resnet34"), "resnet9", "file")
    with pytest.raises(UserError, match="'fc.weight' and 'fc.bias' have different numbers"):
        networks.recognize(shapes("resnet18") | {"fc.bias": torch.empty(3)}, None, "file")


FOREIGN = {
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
    "densenet121": "most similar one is densenet161",
    "shufflenet_v2_x0_5": "most similar one is shufflenet_v2_x1_0",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_networks_of_torchvision_are_named(name):
    more = {"init_weights": False} if name == "googlenet" else {}
    with meta_device():
        network = torchvision.models.get_model(name, **more)
    with pytest.raises(UserError, match="the network is not supported") as error:
        networks.recognize(network.state_dict(), None, "file")
    assert FOREIGN[name] in str(error.value)


# Network of timm -> what its tensors are recognized as, or the reason why they are not.
OF_TIMM = {
    "convnext_atto": "timm:convnext_atto",
    "convnext_tiny": "timm:convnext_tiny",
    "convnext_tiny_cvst": "timm:convnext_tiny_cvst",
    "vit_small_cvst": "timm:vit_small_cvst",
    "convnext_tiny_hnf": "look like a ConvNeXt. If timm has it, give its name: robust",
    "convnextv2_atto": "timm:convnextv2_atto",
    "swin_tiny_patch4_window7_224": "timm:swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256": "fit several networks, whose features differ. Give the name",
    "vit_tiny_patch16_224": "timm:vit_tiny_patch16_224",
    "deit_tiny_patch16_224": "timm:vit_tiny_patch16_224",  # the same network
    "deit3_small_patch16_224": "timm:deit3_small_patch16_224",
    "eva02_tiny_patch14_224": "look like a ViT",
    "xcit_nano_12_p16_224": "timm:xcit_nano_12_p16_224",
    "resnet18d": "timm:resnet18d",
    "resnet50c": "timm:resnet50c",
    "resnet26": "most similar one is resnet",
    "resnet18": "resnet18",
    "seresnet18": "timm:seresnet18",
    "skresnet18": "look like a ResNet with attention",
    "resnetv2_50": "look like a ResNetV2",
    "regnety_002": "timm:regnety_002",
    "efficientnet_b0": "timm:efficientnet_b0 or timm:tf_efficientnet_b0",
    "mobilenetv3_small_050": "look like an EfficientNet or MobileNetV3",
    "inception_v3": "look like an Inception",
    "mixer_s16_224": "timm:mixer_s16_224",
    "poolformer_s12": "match no supported network",
    "coatnet_0_224": "look like a Swin",
}


def of_timm(name, **options):
    pytest.importorskip("timm", reason="timm is not installed")
    with meta_device():
        return timm_networks.library().create_model(name, **options)


@pytest.mark.parametrize("name", OF_TIMM)
def test_networks_of_timm_are_recognized_or_named(name):
    tensors, wanted = of_timm(name, num_classes=7).state_dict(), OF_TIMM[name]
    if " " in wanted:
        with pytest.raises(UserError, match=re.escape(wanted)):
            networks.recognize(tensors, None, "file")
    else:
        assert networks.recognize(tensors, None, "file").arch == wanted
    try:
        networks.arch_row(f"timm:{name}")
    except UserError as error:
        assert name == "resnetv2_50" and "its last layer is a Conv2d" in str(error)
    else:
        assert networks.recognize(tensors, f"timm:{name}", "file").arch == f"timm:{name}"


def test_a_network_of_timm_that_only_its_name_tells_is_read_by_the_name_in_the_file():
    tensors = of_timm("resnetblur50").state_dict()  # pooling has no tensors
    for key, name in (("arch", "resnetblur50"), ("model_name", "timm/resnetblur50.bt_in1k")):
        stated = networks.stated_arch({key: name})
        found = networks.recognize(tensors, None, "file", stated)
        assert found.arch == "timm:resnetblur50"
        networks.check_operations({key: name}, found.arch, "file")
    assert networks.stated_arch({"arch": "resnet50"}) is None
    assert networks.stated_arch({"arch": "nonsense"}) is None


def test_files_of_the_authors_are_renamed_by_timm_and_no_value_changes():
    """Microsoft's Swin has downsampling in other layers, and buffers that timm computes."""
    tensors = dict(of_timm("swin_tiny_patch4_window7_224").state_dict())
    tensors = {k: torch.randn(t.shape) for k, t in tensors.items()}
    original = {}
    for name, tensor in tensors.items():
        old = re.sub(
            r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
        )
        original[old.replace("head.fc", "head")] = tensor
    original["layers.0.blocks.1.attn_mask"] = torch.randn(64, 49, 49)
    shared = "layers.0.blocks.0.attn.relative_position_index"  # same memory as a kept tensor
    original[shared] = original["patch_embed.proj.weight"]
    found = networks.recognize(original, None, "file")
    assert found.arch == "timm:swin_tiny_patch4_window7_224"
    assert found.tensors.keys() == tensors.keys()
    assert all(found.tensors[name] is tensor for name, tensor in tensors.items())
    assert {*found.dropped} == {"layers.0.blocks.1.attn_mask", shared}
    larger = tensors | {"patch_embed.proj.weight": torch.randn(96, 3, 8, 8)}
    with pytest.raises(UserError, match="not supported"):  # timm would resize it
        networks.recognize(larger, None, "file")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm:convnext_tin", "no network 'convnext_tin'. Did you mean convnext_tiny"),
        ("timm:deit_tiny_distilled_patch16_224", "its last layer is several"),
        ("convnext_tiny", "For timm networks, give timm:NAME"),
    ],
)
def test_names_that_cannot_be_built(arch, message):
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(UserError, match=message):
        networks.arch_row(arch)


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
                networks.check_operations({key: name}, "resnet50", "file")
        else:
            networks.check_operations({key: name}, "resnet50", "file")


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("swinv2_tiny_window8_256", "swinv2_tiny_window8_256"),  # two networks have its tensors
        ("poolformer_s12", "timm:poolformer_s12"),  # no marker of any family
        ("vit_tiny_patch16_224", None),
    ],
)
def test_a_file_that_states_its_network_of_timm_is_read(name, stated, tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    state = timm.create_model(name, num_classes=3).state_dict()
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    facts = {"metadata": {"arch": stated}} if stated and ":" in stated else {"arch": stated}
    path = tmp_path / "a.pth"
    torch.save({"state_dict": wrapped} | (facts if stated else {}), path)
    found = read_checkpoint(path)
    assert (found.arch, found.layout) == (f"timm:{name}", "timm")
    assert found.tensors.keys() == state.keys() and not found.dropped
    found.require_head(path)
