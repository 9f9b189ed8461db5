"""Test conversion: names, the command, and equal features of the converted backbone."""

import dataclasses
import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from classification.models import Normalize
from robust_backbones.checkpoint import TARGET_SUFFIXES, export, verify
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.formats import FORMAT
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.checkpoint.key_names import detectron2_name, torchvision_name
from robust_backbones.commands import convert
from robust_backbones.core.errors import UserError
from tests.support import ROOT
from tests.support.bad_checkpoints import BAD_BYTES, BAD_CONTENTS
from tests.support.networks import random_network, robustness_contents

NAMES = [
    ("conv1.weight", "stem.conv1.weight"),
    ("bn1.running_var", "stem.conv1.norm.running_var"),
    ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
    ("layer4.11.bn3.bias", "res5.11.conv3.norm.bias"),
    ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
    ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
]


@pytest.mark.parametrize(("torchvision", "detectron2"), NAMES)
def test_names_translate_in_both_directions(torchvision, detectron2):
    assert detectron2_name(torchvision) == (detectron2, "")
    assert torchvision_name(detectron2) == torchvision


@pytest.mark.parametrize("name", ["fc.weight", "bn1.num_batches_tracked"])
def test_tensors_outside_the_backbone_are_dropped_with_a_reason(name):
    target, reason = detectron2_name(name)
    assert target is None
    assert reason


@pytest.mark.parametrize("name", ["conv1", "module.conv1.weight", "layer5.0.conv1.weight", "fcx.w"])
def test_unknown_names_are_rejected(name):
    with pytest.raises(
        UserError, match=f"'{re.escape(name)}' is not a tensor of a torchvision ResN"
    ):
        detectron2_name(name)
    with pytest.raises(
        UserError, match=f"'{re.escape(name)}' is not a tensor of a Detectron2 ResNet"
    ):
        torchvision_name(name)


ARCHS = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    *(
        pytest.param(arch, marks=pytest.mark.slow)
        for arch in (
            "resnet101",
            "resnet152",
            "resnext101_32x8d",
            "resnext101_64x4d",
            "wide_resnet50_2",
            "wide_resnet50_4",
            "wide_resnet101_2",
        )
    ),
]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_converted_file_has_the_features_of_the_source(tmp_path, arch, capsys):
    """Convert with the command, then compare with torchvision's own feature extractor."""
    from torchvision.models.feature_extraction import create_feature_extractor

    from robust_backbones.detection import backbone, verify

    network = random_network(arch)
    source, target = tmp_path / "source.ckpt", tmp_path / "new" / "target.pth"
    torch.save(robustness_contents(network.state_dict()), source)
    convert.main([str(source), str(target)])
    assert f"{arch}, robustness layout" in capsys.readouterr().out

    contents = torch.load(target, weights_only=True)
    built = backbone.build_robust_resnet_backbone(verify.target_config(arch), verify.RGB)
    built.load_state_dict(contents["model"], strict=True)
    image = torch.randn(2, 3, 64, 64)
    nodes = {"maxpool": "stem"} | {f"layer{i}": f"res{i + 1}" for i in (1, 2, 3, 4)}
    with torch.no_grad():
        expected = create_feature_extractor(network, nodes)(image)
        found = built.eval()(image)
    for stage, features in expected.items():
        scale = features.abs().max()
        assert (found[stage] - features).abs().max() <= 1e-5 * scale, stage
        assert scale > 0
    meta = contents["metadata"]
    assert (meta["arch"], meta["channel_order"]) == (arch, "RGB")
    assert meta["mean"] == [0.485, 0.456, 0.406]
    assert meta["source_sha256"] == read_checkpoint(source).sha256


@pytest.mark.parametrize(
    "arch", ["mobilenet_v2", "shufflenet_v2_x1_0", "mnasnet1_0", "densenet161"]
)
def test_other_networks_convert_to_torchvision_format_only(tmp_path, arch, capsys):
    network = random_network(arch)
    source, target = tmp_path / "source.ckpt", tmp_path / "target.pth"
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save(robustness_contents(state), source)
    with pytest.raises(SystemExit) as stop:
        convert.main([str(source), str(target)])
    assert stop.value.code == 2
    assert f"{arch} cannot be a Detectron2 backbone" in capsys.readouterr().err
    assert not target.exists()

    convert.main([str(source), str(target), "--to", "torchvision"])
    assert "verified, largest relative difference of features: features 0.0e+00" in (
        capsys.readouterr().out
    )
    written = torch.load(target, weights_only=True)
    build_network(arch, 10).load_state_dict(written)  # as users do
    assert written.keys() == network.state_dict().keys()
    assert all(torch.equal(written[k], v) for k, v in network.state_dict().items())


SABOTAGE = {
    "swapped": lambda t: t | {"res3.0.conv1.norm.bias": t["res3.0.conv1.norm.weight"]},
    "negated": lambda t: t | {"res5.1.conv2.weight": -t["res5.1.conv2.weight"]},
    "rounded": lambda t: {k: v.bfloat16().float() for k, v in t.items()},
    "not a number": lambda t: t | {"stem.conv1.norm.bias": torch.full((64,), float("nan"))},
}


@pytest.mark.parametrize("case", SABOTAGE)
def test_verification_detects_a_difference(resnet18_file, case):
    from robust_backbones.detection.verify import verify_backbone

    source = read_checkpoint(resnet18_file)
    tensors = export.detectron2_contents(source)["model"]
    assert max(verify_backbone(source, tensors).values()) <= 1e-5
    with pytest.raises(UserError, match="features of source and target differ by more than 1e-05"):
        verify_backbone(source, SABOTAGE[case](tensors))


def test_verification_detects_a_missing_key(resnet18_file):
    from robust_backbones.detection.verify import verify_backbone

    source = read_checkpoint(resnet18_file)
    tensors = export.detectron2_contents(source)["model"]
    tensors.pop("stem.conv1.norm.bias")
    with pytest.raises(UserError, match="do not fit the backbone: .*stem.conv1.norm.bias"):
        verify_backbone(source, tensors)


def test_inspection_and_plan_write_nothing(tmp_path, resnet18_file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert.main(["--inspect", str(resnet18_file)])
    out = capsys.readouterr().out
    assert "architecture: resnet18\n" in out
    assert "layout: torchvision\n" in out
    convert.main(["--dry-run", str(resnet18_file), "t.pth"])
    out = capsys.readouterr().out
    assert "layer2.0.downsample.0.weight -> res3.0.shortcut.weight (128, 64, 1, 1)\n" in out
    assert "fc.weight dropped: classifier head, not part of a backbone\n" in out
    convert.main(["--dry-run", "--to", "robustness", str(resnet18_file)])
    both = "module.model.conv1.weight, module.attacker.model.conv1.weight"
    assert f"conv1.weight -> {both} (64, 3, 7, 7)\n" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def numpy_scalars(state):
    return {"model": state, "nat_prec1": np.float64(0.5), "epoch": np.int64(3), "args": Namespace()}


@pytest.mark.parametrize("to", TARGET_SUFFIXES)
def test_what_a_conversion_writes_is_read_without_code(tmp_path, resnet18_file, to, capsys):
    source, target = tmp_path / "a.ckpt", tmp_path / f"b{TARGET_SUFFIXES[to][0]}"
    torch.save(numpy_scalars(torch.load(resnet18_file)), source)
    convert.main([str(source), str(target), "--to", to, "--allow-pickle", "--no-verify"])
    read = read_checkpoint(target)
    if to != "torchvision":  # a bare state dict has no metadata
        recorded = read.metadata.get("source_metadata")
        assert recorded == {"nat_prec1": 0.5, "epoch": 3}
        assert [type(value) for value in recorded.values()] == [float, int]
    convert.main(["--inspect", str(target)])
    convert.main(["--dry-run", "--to", to, str(target)])


@pytest.mark.parametrize("to", TARGET_SUFFIXES)
def test_a_target_that_cannot_be_read_back_replaces_nothing(
    tmp_path, resnet18_file, to, capsys, monkeypatch
):
    target = tmp_path / f"a{TARGET_SUFFIXES[to][0]}"
    target.write_text("mine")
    read = export.read_checkpoint

    def spoiled(path, arch):
        found = read(path, arch)
        return dataclasses.replace(found, tensors=found.tensors | {"bn1.bias": torch.zeros(64)})

    monkeypatch.setattr(export, "read_checkpoint", spoiled)
    options = ["--to", to, "--force", "--no-verify"]
    assert "its tensors differ from the source's" in refused(
        capsys, resnet18_file, target, *options
    )
    metadata = export.metadata
    monkeypatch.setattr(export, "read_checkpoint", read)
    monkeypatch.setattr(export, "metadata", lambda source: metadata(source) | {"mean": "x"})
    if to != "torchvision":
        message = refused(capsys, resnet18_file, target, *options)
        assert "was not written, because it cannot be read" in message
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_the_proof_says_what_it_does_not_show(tmp_path, resnet18_file, capsys):
    convert.main([str(resnet18_file), str(tmp_path / "a.pth")])
    convert.main(["--inspect", str(resnet18_file)])
    assert capsys.readouterr().out.count(verify.NOT_SHOWN) == 2
    assert verify.NOT_SHOWN in " ".join((ROOT / "docs/guides/convert.md").read_text().split())


@pytest.mark.parametrize("to", TARGET_SUFFIXES)
@pytest.mark.parametrize("write", ["channels last", "shared", "ours"])
def test_the_plan_of_any_memory_layout(tmp_path, resnet18_file, capsys, to, write):
    state = torch.load(resnet18_file)
    if write == "channels last":
        state = {
            k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
            for k, v in state.items()
        }
    if write == "shared":
        state["layer1.0.bn1.bias"] = state["layer1.0.bn2.bias"]
    if write == "ours":
        state = {f"net.{k}": v for k, v in state.items()} | Normalize().state_dict(
            prefix="normalize."
        )
        state = {"model": state, "format": FORMAT, "version": 1, "metadata": {"arch": "resnet18"}}
    torch.save(state, tmp_path / "a.pth")
    convert.main(["--dry-run", "--to", to, str(tmp_path / "a.pth")])
    lines = capsys.readouterr().out.splitlines()
    assert any(
        re.search(r"layer1.0.bn1.bias -> \S*(layer1.0.bn1|res2.0.conv1.norm).bias", line)
        for line in lines
    )


def refused(capsys, *args) -> str:
    """Run the command, which must fail with one line and exit code 2."""
    with pytest.raises(SystemExit) as stop:
        convert.main([str(arg) for arg in args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    error = "".join(x for x in error.splitlines(True) if "ImageNet's are assumed" not in x)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("absent.pth", "t.pth", [], "absent.pth"),
        (None, "folder.pth", ["--force"], "is a folder"),
        (None, "t.pkl", [], "must end in .pth for the format"),
        (None, "t.pth", ["--to", "safetensors"], "must end in .safetensors for the"),
        (None, "taken.pth", [], "exists. Overwrite it with --force"),
        ("taken.pth", "taken.pth", ["--force"], "is SOURCE itself"),
        (None, "t.pth", ["--arch", "resnet50"], "is a resnet18, not a resnet50"),
        (None, "taken.pth/t.pth", [], "cannot write"),
        (None, "t.pth", ["--from-detector"], "is a classifier (torchvision layout). Remove --from"),
        (None, "t.pth", ["--assume-rgb"], "is a classifier (torchvision layout). Remove --assume"),
        (None, "t.pth", ["--key", "ema"], "--key ema: no such network. It has only one. Omit --k"),
    ],
)
def test_errors_write_nothing(tmp_path, resnet18_file, capsys, source, target, options, message):
    (tmp_path / "taken.pth").write_text("mine")
    (tmp_path / "folder.pth").mkdir()
    source = resnet18_file if source is None else tmp_path / source
    assert message in refused(capsys, source, tmp_path / target, *options)
    assert {p.name for p in tmp_path.iterdir()} == {"taken.pth", "folder.pth"}
    assert (tmp_path / "taken.pth").read_text() == "mine"


@pytest.mark.parametrize("case", [*BAD_CONTENTS, *BAD_BYTES])
def test_bad_files_give_one_line_and_no_target(tmp_path, resnet18_file, capsys, case):
    source = tmp_path / "bad.pth"
    if case in BAD_CONTENTS:
        change, message = BAD_CONTENTS[case]
        torch.save(change(torch.load(resnet18_file)), source)
    else:
        change, message = BAD_BYTES[case]
        source.write_bytes(change(resnet18_file.read_bytes()))
    assert re.search(message, refused(capsys, source, tmp_path / "t.pth"))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--inspect --to robustness", "--to has no effect without TARGET or --dry-run"),
        ("--inspect --force", "--inspect writes no file, so --force has no effect. Remove --force"),
        ("--inspect --no-verify", "so --no-verify has no effect"),
        ("t.pth --dry-run --force", "--dry-run writes no file, so --force has no effect"),
        ("--dry-run --no-verify", "so --no-verify has no effect"),
    ],
)
def test_options_without_effect(capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        convert.main(["a.pth", *words.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
