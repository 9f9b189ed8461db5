"""Checkpoints that must be rejected, with the expected messages."""

import pickle

import torch

from robust_backbones.checkpoint import key_names as convert
from robust_backbones.checkpoint.formats import FORMAT
from tests.support.networks import robustness_contents


def prefixed(prefix):
    return lambda s: {prefix + k: v for k, v in s.items()}


def backbone_of(s):
    return convert.to_detectron2(s)[0]


class Bomb:
    """An object whose pickle creates a file when it is executed."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


NAN = torch.full((64,), float("nan"))


def without(*names):
    return lambda s: {k: v for k, v in s.items() if k not in names}


def changed(name, value):
    return lambda s: {**s, name: value}


def robust_with(name, value):
    return lambda s: robustness_contents(s)["model"] | {name: value}


def d2(tensors=None, **metadata):
    metadata = {"channel_order": "RGB"} | metadata
    return lambda s: {"model": backbone_of(s) | (tensors or {}), "metadata": metadata}


BAD_CONTENTS = {
    "missing": (without("layer3.0.conv1.weight"), "missing 'layer3.0.conv1.weight'"),
    "missing statistics": (without("bn1.running_var"), "missing 'bn1.running_var'"),
    "half a head": (without("fc.bias"), "missing 'fc.bias'"),
    "extra": (changed("layer9.weight", torch.zeros(1)), "unknown 'layer9.weight'"),
    "colliding after stripping": (
        lambda s: s | prefixed("module.")({"conv1.weight": s["conv1.weight"]}),
        "unknown 'module.conv1.weight'",
    ),
    "shape off by one": (
        changed("bn1.weight", torch.zeros(65)),
        r"'bn1.weight' has shape \(65,\) instead of \(64,\)",
    ),
    "kernel": (changed("conv1.weight", torch.zeros(64, 3, 3, 3)), "'conv1.weight' has shape"),
    "gray network": (changed("conv1.weight", torch.zeros(64, 1, 7, 7)), "'conv1.weight' has shape"),
    "scalar": (changed("bn1.weight", torch.tensor(1.0)), "'bn1.weight' has shape"),
    "heads differ": (changed("fc.bias", torch.zeros(3)), "different numbers of classes"),
    "nan": (changed("bn1.bias", NAN), "'bn1.bias' contains NaN or infinity"),
    "infinity": (changed("bn1.bias", NAN.nan_to_num(float("inf"))), "contains NaN or infinity"),
    "integers": (changed("bn1.bias", torch.zeros(64, dtype=torch.int32)), "dtype torch.int32"),
    "double": (changed("bn1.bias", torch.zeros(64).double()), "dtype torch.float64. Allowed are"),
    "complex": (changed("bn1.bias", torch.zeros(64, dtype=torch.complex64)), "torch.complex64"),
    "text": (changed("bn1.bias", "x"), "'bn1.bias' is a str.. Save a state_dict"),
    "none": (changed("bn1.bias", None), "'bn1.bias' is a NoneType"),
    "numbers as names": (lambda s: dict(enumerate(s.values())), "keys are not strings"),
    "a list": (lambda s: list(s.values()), "contains a list, not a dictionary"),
    "a tensor": (lambda s: s["fc.bias"], "contains a Tensor, not a dictionary"),
    "empty": (lambda s: {}, "it is empty"),
    "empty model": (lambda s: {"model": {}}, "it is empty"),
    "copy differs": (robust_with("module.attacker.model.bn1.bias", NAN), "is not a copy"),
    "copy of nothing": (robust_with("module.attacker.model.x", NAN), "is not a copy"),
    "normalizations differ": (
        robust_with("module.normalizer.new_mean", torch.zeros(3, 1, 1)),
        "differs from the first normalization",
    ),
    "newer format": (
        lambda s: {"format": FORMAT, "version": 99, "model": s},
        "format version 99 is not supported, only 1",
    ),
    "another architecture": (
        lambda s: {"features.0.weight": torch.zeros(64, 3, 11, 11)},
        "the network is not supported",
    ),
    "three blocks less": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("layer4")},
        "missing 'layer4",
    ),
    "BGR by metadata": (d2(channel_order="BGR"), "expects BGR images"),
    "BGR by mean": (
        d2(mean=[0.406, 0.456, 0.485], std=[0.225, 0.224, 0.229]),
        "expects BGR images",
    ),
    "unknown order": (lambda s: {"model": backbone_of(s)}, "channel order is not recorded"),
    "odd mean": (d2(mean=[123.0, 116.0, 103.0], std=[0.2, 0.2, 0.2]), "three numbers in .0, 1."),
    "text for a mean": (
        d2(mean="imagenet", std=[0.2, 0.2, 0.2]),
        "mean is 'imagenet'. It must be three",
    ),
    "mean without std": (d2(mean=[0.5, 0.5, 0.5]), "only one of mean and std"),
    "normalization and record differ": (
        lambda s: robustness_contents(s) | {"metadata": {"mean": [0.5, 0.5, 0.5]}},
        "mean differs between the normalization layer and the metadata",
    ),
    "sparse": (lambda s: s | {"fc.weight": s["fc.weight"].to_sparse()}, "contains sparse tensors"),
    "negative variance": (changed("bn1.running_var", -torch.ones(64)), "negative variances"),
    "caffe names": (
        lambda s: {"conv1_w": s["conv1.weight"], "res_conv1_bn_s": s["bn1.weight"]},
        "the network is not supported",
    ),
    "alien name in Detectron2": (
        d2({"res2.0.convX.weight": NAN}),
        "'res2.0.convX.weight' is not a tensor of a Detectron2 ResNet",
    ),
}


BAD_BYTES = {
    "empty": (lambda good: b"", "the file is empty"),
    "HTML": (lambda good: b"\n<!DOCTYPE html><html>", "is an HTML page"),
    "JSON error": (lambda good: b'{"error": "Entry not found"}', "is a JSON message"),
    "nonsense": (lambda good: b"nonsense", "is not a checkpoint .it begins with b'nonsense'"),
    "zeros": (lambda good: bytes(1000), "is not a checkpoint .it begins with"),
    "safetensors cut off": (lambda good: b"\xff\0\0\0\0\0\0\0{", "is not a complete checkpoint"),
    "safetensors that claims 2**60 bytes": (lambda good: b"\0\0\0\0\0\0\0\x10{", "not a complete"),
    "pickle cut off": (lambda good: pickle.dumps({"a": 1})[:-3], "is not a complete checkpoint"),
    "LFS pointer": (
        lambda good: b"version https://git-lfs.github.com/spec/v1\n",
        r"is a Git LFS pointer \(run: git lfs pull\)",
    ),
    **{
        f"cut at {at:.0%}": (lambda good, at=at: good[: int(len(good) * at)], "not a complete")
        for at in (0.0001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999999)
    },
}
