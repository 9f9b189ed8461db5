"""Verify that two sets of weights compute the same features, stage by stage, on one image."""

from typing import Any

import torch
from torch import Tensor, nn

from robust_backbones.archs import ARCHS, TIMM, ResNetArch
from robust_backbones.checkpoint.architectures import (
    BATCH_COUNTER,
    arch_row,
    build_network,
    with_module_versions,
)
from robust_backbones.core.errors import UserError
from robust_backbones.meta_device import meta_device

STAGES = ("stem", "res2", "res3", "res4", "res5")
TOLERANCE = 1e-5  # largest relative difference, in float32
# Differences that a comparison of two networks with the same tensors cannot detect.
NOT_SHOWN = (
    "Tensors do not reveal anti-aliased pooling, leaky or smooth activations, dilation, or strides "
    "in 1x1 convolutions. If your network has one of them, its features differ from those that "
    "were compared."
)
SIZE, TIMM_SIZE = 96, 224  # pixels; 224 is a multiple of all usual patch sizes


def fixed_image(arch: str) -> Tensor:
    """Return the image for all comparisons of an architecture: `(1, 3, H, W)`, normal noise."""
    size = TIMM_SIZE if arch.startswith(TIMM) else SIZE
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def network_features(arch: str, tensors: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    """Compute the features of a network of torchvision or timm with the given weights.

    Args:
        arch: architecture, as for `build_network`.
        tensors: `{name in the network: tensor}`; the head and batch counters may be missing.
        image: `(N, 3, H, W)`, normalized.

    Returns:
        Features of a ResNet, `{stage: (N, C, h, w)}` for the stages stem and res2 to res5. For
        timm networks, `{"0": features, ...}` of all stages or blocks. For other networks,
        `{"features": output of the last convolutional layer}`.
    """
    head = arch_row(arch).head
    bias = tensors.get(f"{head}.bias")
    with meta_device():  # no missing tensor is used
        network: Any = build_network(arch, 1 if bias is None else len(bias)).eval()
    state = with_module_versions(tensors, arch)
    missing = network.load_state_dict(state, strict=False, assign=True).missing_keys
    assert all(name.startswith(f"{head}.") or name.endswith(BATCH_COUNTER) for name in missing)
    with torch.no_grad():
        if arch.startswith(TIMM):
            maps = network.forward_intermediates(image, intermediates_only=True)
            return {str(number): features for number, features in enumerate(maps)}
        if isinstance(ARCHS[arch], ResNetArch):
            return _resnet_stages(network, image)
        if arch == "shufflenet_v2_x1_0":
            network.fc = nn.Identity()
            return {"features": network(image)}
        return {
            "features": network.layers(image) if arch == "mnasnet1_0" else network.features(image)
        }


def _resnet_stages(network: Any, image: Tensor) -> dict[str, Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    features = {"stem": x}
    for stage, name in zip(STAGES[1:], ("layer1", "layer2", "layer3", "layer4"), strict=True):
        features[stage] = x = getattr(network, name)(x)
    return features


def compare_features(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """Compare the features of two networks, stage by stage.

    Args:
        expected: `{stage: tensor}` from the source network.
        found: `{stage: tensor}` from the converted network.

    Returns:
        `{stage: largest absolute difference / largest absolute value}`.

    Raises:
        UserError: a difference exceeds `TOLERANCE` or is NaN.
    """
    differences = {}
    for stage, features in expected.items():
        scale = features.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        differences[stage] = ((found[stage] - features).abs().max() / scale).item()
    if not all(value <= TOLERANCE for value in differences.values()):
        text = ", ".join(f"{stage} {value:.1e}" for stage, value in differences.items())
        raise UserError(
            f"the features of source and target differ by more than {TOLERANCE:g} (relative): "
            f"{text}."
        )
    return differences
