"""Test the networks of published models: their tensors, and the convolutional stem."""

import hashlib
from functools import cache

import pytest
import torch
from torch.nn import functional

from robust_backbones import zoo
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.meta_device import meta_device
from robust_backbones.timm_additions import ConvStem

# SHA-256 of the names and shapes of the tensors that the original code builds: RobustBench's
# `convstem_models.py` and `xcit.py`, which gave the same logits for the same tensors.
ORIGINAL = {
    "convnext_tiny_cvst": "aa73af500eafcb73",
    "convnext_small_cvst": "aa0242b521d40c7c",
    "convnext_base_cvst": "fce6ffd8964da2fe",
    "convnext_large_cvst": "773f6edcda3ae61e",
    "vit_small_cvst": "634f893e128ad7ec",
    "vit_base_cvst": "98306c3537974e5c",
    "xcit_small_12_p16_224": "fbd09171e0c25e37",
    "xcit_medium_12_p16_224": "65a55a48f6215b24",
    "xcit_large_12_p16_224": "cdbd3a7870612f84",
}


@cache
def build(arch: str) -> torch.nn.Module:
    with meta_device():
        return build_network(arch).eval()


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_tensors_are_those_of_the_original_code(name):
    tensors = sorted(build(f"timm:{name}").state_dict().items())
    text = "\n".join(f"{key} {tuple(tensor.shape)}" for key, tensor in tensors)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == ORIGINAL[name]


@pytest.mark.parametrize("arch", sorted({m.arch for m in zoo.MODELS.values() if m.arch}))
def test_the_network_of_every_row_is_built_and_takes_its_images(arch):
    rows = [m for m in zoo.MODELS.values() if m.arch == arch]
    network = build(arch)
    for size in {row.size for row in rows}:
        assert network(torch.empty(1, 3, size, size, device="meta")).shape == (1, 1000)
    if "cvst" in arch or "12_p16" in arch:
        config = network.pretrained_cfg
        assert isinstance(network.get_submodule(config["classifier"]), torch.nn.Linear)
        assert isinstance(network.get_submodule(config["first_conv"]), torch.nn.Conv2d)
        if "xcit_small" not in arch:  # timm's own row describes the standard network
            assert {tuple(config["mean"])} == {row.statistics.mean for row in rows}


def test_the_stem_is_convolution_layernorm_over_channels_and_gelu():
    torch.manual_seed(0)
    stem, x = ConvStem((4, 6), (2, 1), projection=5), torch.rand(2, 3, 8, 8)
    for parameter in stem.parameters():
        torch.nn.init.normal_(parameter)
    expected = x
    for number, stride in ((0, 2), (3, 1)):
        layer, norm = stem.stem[number : number + 2]
        expected = functional.conv2d(expected, layer.weight, layer.bias, stride, padding=1)
        spread = expected.var(1, correction=0, keepdim=True)
        expected = (expected - expected.mean(1, keepdim=True)) / (spread + 1e-6).sqrt()
        expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
        expected = functional.gelu(expected)
    expected = functional.conv2d(expected, stem.stem[6].weight, stem.stem[6].bias)
    assert expected.shape == (2, 5, 4, 4)
    torch.testing.assert_close(stem(x), expected)
