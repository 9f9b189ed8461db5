"""Names, and the proof that a converted backbone computes the same features."""

import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_network, robustness_contents

from robust_backbones import checkpoint, convert
from robust_backbones.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import convert as tool

CASES = [
    ("conv1.weight", "stem.conv1.weight"),
    ("bn1.running_var", "stem.conv1.norm.running_var"),
    ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
    ("layer4.11.bn3.bias", "res5.11.conv3.norm.bias"),
    ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
    ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
    ("fc.weight", None),
    ("bn1.num_batches_tracked", None),
]


@pytest.mark.parametrize(("name", "expected"), CASES)
def test_names(name, expected):
    assert convert.detectron2_name(name)[0] == expected


@pytest.mark.parametrize("name", ["conv1", "module.conv1.weight", "layer1.conv1.weight", "fcx.w"])
def test_foreign_names_are_refused(name):
    with pytest.raises(
        UserError, match=f"'{re.escape(name)}' is no tensor of a torchvision ResNet"
    ):
        convert.detectron2_name(name)


ARCHS = [
    "resnet18",
    "resnet50",
    pytest.param("wide_resnet50_2", marks=pytest.mark.slow),
    pytest.param("wide_resnet50_4", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_converted_file_gives_the_sources_features(tmp_path, arch, capsys):
    """The whole way through the command, then judged by torchvision's own feature extractor."""
    from torchvision.models.feature_extraction import create_feature_extractor

    from robust_backbones.detection import backbone, verify

    network = random_network(arch)
    source, target = tmp_path / "source.ckpt", tmp_path / "new" / "target.pth"
    torch.save(robustness_contents(network.state_dict()), source)
    tool.main([str(source), str(target)])
    assert f"{arch}, robustness layout" in capsys.readouterr().out

    contents = torch.load(target, weights_only=True)
    built = backbone.build_robust_resnet_backbone(verify.target_config(arch), verify.RGB)
    built.load_state_dict(contents["model"], strict=True)
    image = torch.randn(2, 3, 64, 64)
    nodes = {
        "maxpool": "stem",
        "layer1": "res2",
        "layer2": "res3",
        "layer3": "res4",
        "layer4": "res5",
    }
    with torch.no_grad():
        expected = create_feature_extractor(network, nodes)(image)
        found = built.eval()(image)
    for stage, features in expected.items():
        scale = features.abs().max()
        assert (found[stage] - features).abs().max() <= 1e-5 * scale, stage
        assert scale > 0
    meta = contents["metadata"]
    assert (meta["arch"], meta["channel_order"], meta["mean"]) == (
        arch,
        "RGB",
        [0.485, 0.456, 0.406],
    )
    assert meta["source_sha256"] == checkpoint.read(source).sha256


SABOTAGE = {
    "swapped": lambda t: t | {"res3.0.conv1.norm.bias": t["res3.0.conv1.norm.weight"]},
    "negated": lambda t: t | {"res5.1.conv2.weight": -t["res5.1.conv2.weight"]},
    "rounded": lambda t: {k: v.bfloat16().float() for k, v in t.items()},
}


@pytest.mark.parametrize("case", SABOTAGE)
def test_verification_notices(resnet18_file, case):
    from robust_backbones.detection.verify import verify

    source = checkpoint.read(resnet18_file)
    tensors = convert.detectron2_contents(source)["model"]
    assert max(verify(source, tensors).values()) <= 1e-5
    with pytest.raises(UserError, match="features of source and target differ by more than 1e-05"):
        verify(source, SABOTAGE[case](tensors))


def test_verification_notices_a_missing_key(resnet18_file):
    from robust_backbones.detection.verify import verify

    source = checkpoint.read(resnet18_file)
    tensors = convert.detectron2_contents(source)["model"]
    tensors.pop("stem.conv1.norm.bias")
    with pytest.raises(UserError, match="do not fit: .*stem.conv1.norm.bias"):
        verify(source, tensors)


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("absent.pth", "t.pth", [], "absent.pth is not a file"),
        (None, "t.pkl", [], "must end in .pth"),
        (None, "taken.pth", [], "exists; pass --force"),
        (None, "t.pth", ["--arch", "resnet50"], "is a resnet18, not a resnet50"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    tmp_path, resnet18_file, capsys, source, target, options, message
):
    (tmp_path / "taken.pth").write_text("mine")
    source = resnet18_file if source is None else tmp_path / source
    with pytest.raises(SystemExit) as stop:
        tool.main([str(source), str(tmp_path / target), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["taken.pth"]
    assert (tmp_path / "taken.pth").read_text() == "mine"
