"""Checkpoints of other programs: how they store a ResNet-18, and files of other kinds."""

import argparse
import io
import pathlib
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from classification.models import Classifier, save_classifier
from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.input_statistics import IMAGENET, InputStatistics
from tests.support.bad_checkpoints import backbone_of, prefixed
from tests.support.networks import random_network, robustness_contents

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Attributes:
        name: cell of the table in docs/reference/input_files.md.
        write: writes the file of a ResNet-18's state dict.
        options: arguments of `read_checkpoint` that the file needs.
        refused: pattern of the error message; empty if the file is read.
        without: pattern of the error message without `options`.
        statistics: whether mean and std are in the file.
        head: whether the last layer is read.
    """

    name: str
    write: Callable[[State, Path], object]
    options: dict = field(default_factory=dict)
    refused: str = ""
    without: str = ""
    statistics: bool = False
    head: bool = True


def saved(change: Callable[[State], object]) -> Callable[[State, Path], object]:
    """Write what `change` makes of the state dict with `torch.save`."""
    return lambda state, path: torch.save(change(state), path)


def as_bytes(data: bytes) -> Callable[[State, Path], object]:
    return lambda state, path: path.write_bytes(data)


def publish(contents: dict, path: Path, **options) -> None:
    """Write the container of the published models: not a zip archive, with storages on a GPU."""
    file = io.BytesIO()
    torch.save(contents, file, _use_new_zipfile_serialization=False, **options)
    data = file.getvalue()
    changes = {
        rb"ctorch\n(\w+Storage)\n": b"ctorch.cuda\n\\1\n",
        b"X\x03\0\0\0cpu": b"X\x06\0\0\0cuda:0",
    }
    for old, new in changes.items():
        data, count = re.subn(old, new, data)
        assert count
    path.write_bytes(data)


def normalizer(mean: str, std: str) -> nn.Module:
    module = nn.Module()
    module.register_buffer(mean, torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
    module.register_buffer(std, torch.tensor([0.2, 0.2, 0.25]).view(1, 3, 1, 1))
    return module


def network(state: State) -> nn.Module:
    made = build_network("resnet18", 10)
    made.load_state_dict(state)
    return made


def headless(state: State) -> State:
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


def several_layers(state: State) -> State:
    return headless(state) | {"fc.1.weight": torch.ones(7, 512), "fc.1.bias": torch.ones(7)}


def contrastive(state: State) -> dict:
    more = {"projection_head.0.weight": torch.ones(2, 512), "prototypes.weight": torch.ones(3, 2)}
    return prefixed("module.")(headless(state) | more)


def moco(state: State) -> dict:
    contents = prefixed("module.encoder_q.")(headless(state))
    contents |= prefixed("module.encoder_k.")({k: v + 1 for k, v in state.items()})
    contents |= {"module.encoder_q.fc.0.weight": torch.ones(2, 2), "module.queue": torch.ones(2, 2)}
    return {"epoch": 199, "arch": "resnet18", "state_dict": contents}


def mmpretrain(state: State) -> dict:
    return {f"head.{k}" if k.startswith("fc.") else f"backbone.{k}": v for k, v in state.items()}


def cyclic(state: State) -> dict:
    """As the library saves a run with `--custom-lr-multiplier cyclic`."""
    rate = np.interp([1], [0, 4, 15], [0, 1, 0])[0]
    groups = [{"lr": rate, "momentum": 0.9, "params": [0]}]
    more = {"schedule": {"_last_lr": [rate]}, "optimizer": {"state": {}, "param_groups": groups}}
    return robustness_contents(state) | more | {"epoch": np.int64(7), "nat_prec1": np.float64(0.5)}


def ours(state: State, path: Path) -> None:
    statistics = InputStatistics((0.5, 0.4, 0.3), (0.2, 0.2, 0.25))
    model = Classifier.build("resnet18", 10, statistics)
    model.net.load_state_dict(state)
    save_classifier(path, model.state_dict(), {"arch": "resnet18", "epochs": 1})


def converted(state: State, path: Path) -> None:
    source = path.with_suffix(".source")
    torch.save(robustness_contents(state), source)
    export.save(
        found := read_checkpoint(source), export.detectron2_contents(found), "detectron2", path
    )


def detector(state: State, **metadata) -> dict:
    backbone = prefixed("backbone.bottom_up.")(backbone_of(state))
    return {
        "model": backbone | {"backbone.fpn_lateral2.weight": torch.ones(1)},
        "metadata": {"channel_order": "RGB"} | metadata,
    }


class Options:
    """Class of a module that is missing where the file is read."""


def of_missing_module(state: State, path: Path) -> None:
    module = types.ModuleType("their_code")
    module.Options, name = Options, Options.__module__
    sys.modules["their_code"], Options.__module__ = module, "their_code"
    try:
        torch.save({"model": state, "args": Options()}, path)
    finally:
        Options.__module__ = name
        del sys.modules["their_code"]


class OnWindows:
    def __reduce__(self):
        return pathlib.WindowsPath, ("C:/runs",)


def torchscript(state: State, path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def keys_of(arch: str, timm: bool = False) -> Callable[[State, Path], object]:
    """Write a network that is not supported, with tensors of one value."""

    def write(state: State, path: Path) -> None:
        import timm as library
        import torchvision

        with torch.device("meta"):
            made = (
                library.create_model(arch) if timm else torchvision.models.get_model(arch)
            ).state_dict()
        torch.save({name: torch.zeros(1) for name in made}, path)

    return write


def with_loss(state: State) -> dict:
    tensors = prefixed("model.")(state) | {"criterion.weight": torch.ones(10)}
    return {"state_dict": tensors, "hyper_parameters": {"lr": 0.1}, "epoch": 3}


def two_networks(state: State) -> dict:
    return {"student": {k: v + 1 for k, v in state.items()}, "teacher": state, "epoch": 3}


SAVED_WITH_CODE = {"allow_pickle": True}
CODE = "would execute code .*convert FILE TARGET --allow-pickle"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 46830571\n" % 7
INDEX = b'{\n  "metadata": {"total_size": 1},\n  "weight_map": {}\n}'

KINDS = [
    Kind("state dict of torchvision or timm", saved(dict)),
    Kind(
        "the same in float16 or bfloat16", saved(lambda s: {k: v.bfloat16() for k, v in s.items()})
    ),
    Kind("`.safetensors`", lambda s, p: safetensors.torch.save_file(s, p)),
    Kind(
        "in `model` or `state_dict`, with epoch and optimizer",
        saved(
            lambda s: {
                "state_dict": s,
                "epoch": 3,
                "optimizer": {"state": {0: {"step": torch.ones(1)}}},
            }
        ),
    ),
    Kind(
        "in any other single entry: `net`, `model_state_dict`, `teacher`, …",
        saved(lambda s: {"model_state_dict": s, "epoch": 3, "best": 0.5}),
    ),
    Kind("in nested entries", saved(lambda s: {"run": {"network": {"weights": s}}, "epoch": 3})),
    Kind(
        "weights and their average: `model_ema`, `state_dict_ema`, …",
        saved(lambda s: {"net": s, "net_ema": {k: v + 1 for k, v in s.items()}}),
    ),
    Kind(
        "several networks: `student`, `teacher`",
        saved(two_networks),
        {"key": "teacher"},
        without="several sets of tensors: student, teacher. Choose one: .*--key NAME",
    ),
    Kind(
        "several networks in one state dict",
        saved(lambda s: {f"{name}.net.{k}": v for name in ("b", "a") for k, v in s.items()}),
        {"key": "a.net"},
        without="several networks: b.net and a.net. Choose one: .* --key NAME",
    ),
    Kind("DDP, `torch.compile`, Lightning prefixes", saved(prefixed("model.module._orig_mod."))),
    Kind("Lightning module with a loss", saved(with_loss)),
    Kind("PyTorch's `AveragedModel`", saved(lambda s: AveragedModel(network(s)).state_dict())),
    Kind("MMPretrain: `backbone.*` and `head.fc.*`", saved(mmpretrain)),
    Kind(
        "`nn.Sequential(normalization, network)`",
        saved(lambda s: nn.Sequential(normalizer("_mean", "_std"), network(s)).state_dict()),
        statistics=True,
    ),
    Kind(
        "RobustBench: `mu`, `sigma`, `module.*`",
        saved(lambda s: normalizer("mu", "sigma").state_dict() | prefixed("module.")(s)),
        statistics=True,
    ),
    Kind("randomized smoothing: `1.module.*`", saved(prefixed("1.module."))),
    Kind("head with several layers", saved(several_layers), head=False),
    Kind(
        "head outside the network",
        saved(
            lambda s: prefixed("encoder.")(headless(s)) | {"classifier.weight": torch.ones(7, 512)}
        ),
        head=False,
    ),
    Kind("SwAV, SimSiam: projection head, prototypes", saved(contrastive), head=False),
    Kind("MoCo", saved(moco), head=False),
    Kind(
        "other tensors outside the network",
        saved(lambda s: prefixed("backbone.")(s) | {"neck.weight": torch.ones(2)}),
        {"key": "backbone"},
        without="'neck.weight' is outside the network, whose keys begin with 'backbone.'. .*--key",
    ),
    Kind("`robustness` library", saved(robustness_contents), statistics=True),
    Kind(
        "`robustness` library, published models",
        lambda s, p: publish(robustness_contents(s), p),
        statistics=True,
    ),
    Kind("`robustness` library, cyclic learning rate", saved(cyclic), statistics=True),
    Kind("our pretraining and transfer", ours, statistics=True),
    Kind("our converted backbone", converted, statistics=True, head=False),
    Kind(
        "our detector",
        saved(lambda s: detector(s, mean=list(IMAGENET.mean), std=list(IMAGENET.std))),
        {"from_detector": True},
        without="is a whole detector .*--from-detector",
        statistics=True,
        head=False,
    ),
    Kind(
        "Detectron2 backbone from another program",
        saved(lambda s: {"model": backbone_of(s), "__author__": "me", "matching_heuristics": True}),
        {"assume_rgb": True},
        without="channel order is not recorded. .*--assume-rgb",
        head=False,
    ),
    Kind(
        "Detectron2, BGR or `STRIDE_IN_1X1`",
        saved(lambda s: detector(s, stride_in_1x1=True)),
        {"from_detector": True},
        refused="STRIDE_IN_1X1 is True. Only False",
    ),
    Kind(
        "with training options (`argparse.Namespace`)",
        saved(lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}),
        SAVED_WITH_CODE,
        without="argparse.Namespace.. The file contains the options of its training run",
    ),
    Kind(
        "whole pickled network",
        saved(network),
        SAVED_WITH_CODE,
        without="execute code .*ResNet.* a whole pickled network instead of its state_dict",
    ),
    Kind(
        "objects from a missing module",
        of_missing_module,
        SAVED_WITH_CODE,
        refused="needs the module 'their_code', which is missing. Install",
        without=CODE,
    ),
    Kind(
        "Windows paths",
        saved(lambda s: {"state_dict": s, "dir": OnWindows()}),
        SAVED_WITH_CODE,
        refused="contains a Windows path",
        without=CODE,
    ),
    Kind(
        "TorchScript",
        torchscript,
        refused=r"is a TorchScript program. Save its weights: torch.save.torch.jit.load",
    ),
    Kind(
        "torchvision's ViT, Swin, ConvNeXt, EfficientNet, …",
        keys_of("vit_b_16"),
        refused="network is not supported. Its keys, .*, look like a ViT. Use timm's weights for ",
    ),
    Kind(
        "network with different operations, if the file records its name",
        saved(lambda s: {"arch": "leaky_resnet18", "state_dict": s}),
        refused="arch 'leaky_resnet18' has an activation other than ReLU, which is not supported",
    ),
    Kind(
        "NaN, infinity, float64",
        saved(lambda s: s | {"bn1.bias": s["bn1.bias"] * float("nan")}),
        refused="'bn1.bias' contains NaN or infinity",
    ),
    Kind("Git LFS pointer", as_bytes(LFS), refused=r"is a Git LFS pointer \(run: git lfs pull\)"),
    Kind(
        "web page, JSON or XML message",
        as_bytes(b"<!DOCTYPE html><html>"),
        refused="is an HTML page, not a checkpoint",
    ),
    Kind(
        "index of a sharded model",
        as_bytes(INDEX),
        refused="is the index of a sharded safetensors model",
    ),
    Kind(
        "Keras, ONNX, NumPy, GGUF",
        as_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)),
        refused="is an HDF5 file .Keras., not a checkpoint",
    ),
    Kind(
        "archive (`.zip`, `.tar`, `.gz`)",
        as_bytes(b"\x1f\x8b\x08" + bytes(99)),
        refused="is a compressed archive, not a checkpoint. Unpack it first",
    ),
    Kind(
        "truncated",
        lambda s, p: (torch.save(s, p), p.write_bytes(p.read_bytes()[:-1000])),
        refused=r"is not a complete checkpoint \(\d+ bytes\). Download it again",
    ),
]


def resnet18_state() -> State:
    return random_network("resnet18").state_dict()
