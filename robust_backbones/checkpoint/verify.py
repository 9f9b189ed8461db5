"""Proof that two sets of weights compute the same: features, stage by stage, on one image."""

from typing import Any

import torch
from torch import Tensor, nn

from robust_backbones.checkpoint.architectures import COUNTER, build_network, with_versions
from robust_backbones.core.errors import UserError
from robust_backbones.zoo import ARCHS, ResNetArch

STAGES = ("stem", "res2", "res3", "res4", "res5")
TOLERANCE = 1e-5  # relative, float32
SIZE = 96  # side of the image, pixels


def fixed_image() -> Tensor:
    """The image that everything is compared on: `(1, 3, SIZE, SIZE)`, as if normalised."""
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def network_features(arch: str, tensors: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    """What torchvision's own network of `arch` computes from the image with these weights.

    Args:
        tensors: torchvision names; the head and BatchNorm's counters may be missing.
        image: `(N, 3, H, W)`, normalised.

    Returns:
        ResNets: `{stage: (N, C, h, w)}` for stem and res2 to res5. Others: `{"features": ...}`,
        what the last convolutional layer gives.
    """
    head = ARCHS[arch].head
    bias = tensors.get(f"{head}.bias")
    with torch.device("meta"):  # no time spent on random weights; what stays so is not used
        network: Any = build_network(arch, 1 if bias is None else len(bias)).eval()
    state = with_versions(tensors, arch)
    missing = network.load_state_dict(state, strict=False, assign=True).missing_keys
    assert all(name.startswith(f"{head}.") or name.endswith(COUNTER) for name in missing)
    with torch.no_grad():
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


def compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """`{stage: largest difference / largest value}`.

    Raises:
        UserError: a difference exceeds `TOLERANCE`, or is no number.
    """
    differences = {}
    for stage, features in expected.items():
        scale = features.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        differences[stage] = ((found[stage] - features).abs().max() / scale).item()
    if not all(value <= TOLERANCE for value in differences.values()):
        text = ", ".join(f"{stage} {value:.1e}" for stage, value in differences.items())
        raise UserError(f"features of source and target differ by more than {TOLERANCE:g}: {text}.")
    return differences
