"""Test that every format and architecture preserves the tensors bit for bit."""

import dataclasses

import pytest
import torch

from robust_backbones.archs import ARCHS, RESNETS
from robust_backbones.checkpoint import TARGET_SUFFIXES
from robust_backbones.checkpoint import formats as layouts
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.export import TARGETS, save
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import InputStatistics

SMALL = ("resnet18", "mobilenet_v2")


def source(arch: str) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = build_network(arch, 7).state_dict()
    tensors = {
        name: torch.rand(t.shape, generator=generator) if t.is_floating_point() else torch.tensor(5)
        for name, t in shapes.items()
    }
    statistics = InputStatistics((0.5, 0.4, 0.3), (0.2, 0.21, 0.22))
    return Checkpoint(tensors, arch, "torchvision", statistics, sha256="ab" * 32)


def same(found, original, to):
    expected = original.tensors
    if to == "detectron2":
        left_out = ("fc.weight", "fc.bias", "num_batches_tracked")
        expected = {k: v for k, v in expected.items() if not k.endswith(left_out)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("arch", ARCHS)
def test_contents_have_the_same_tensors(arch):
    original = source(arch)
    for to, target in TARGETS.items():
        if to == "detectron2" and arch not in RESNETS:
            with pytest.raises(UserError, match=f"{arch} cannot be a Detectron2 backbone. Choose"):
                target.contents(original)
        else:
            same(layouts.unwrap(target.contents(original), "memory").tensors, original, to)


@pytest.mark.parametrize(
    ("arch", "to"), [(a, to) for a in SMALL for to in TARGETS if a in RESNETS or to != "detectron2"]
)
def test_files_have_the_same_tensors_and_their_origin(tmp_path, arch, to):
    original, target = source(arch), TARGETS[to]
    path = tmp_path / f"a{TARGET_SUFFIXES[to][0]}"
    save(original, target.contents(original), to, path)
    read = read_checkpoint(path)
    same(read.tensors, original, to)
    assert read.arch == arch
    if to != "torchvision":  # a bare state dict has no metadata
        assert read.statistics == original.statistics.of("file")
        assert read.metadata["source_sha256"] == original.sha256


def test_a_chain_through_all_formats_changes_nothing(tmp_path):
    original = read = source("resnet18")
    for to in ("robustness", "safetensors", "torchvision", "detectron2"):
        target = TARGETS[to]
        path = tmp_path / f"{to}{TARGET_SUFFIXES[to][0]}"
        save(read, target.contents(read), to, path)
        read = read_checkpoint(path)
    same(read.tensors, original, "detectron2")


def test_the_robustness_format_requires_a_head():
    original = source("resnet18")
    bare = {k: v for k, v in original.tensors.items() if not k.startswith("fc.")}
    with pytest.raises(UserError, match="the source has no last layer .fc.weight."):
        TARGETS["robustness"].contents(dataclasses.replace(original, tensors=bare))
