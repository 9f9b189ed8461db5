"""Proof that a converted backbone computes what its source computes, stage by stage."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor

from robust_backbones.checkpoint import Checkpoint, build_network
from robust_backbones.detection.backbone import (
    PIXEL_MEAN,
    PIXEL_STD,
    build_robust_resnet_backbone,
)
from robust_backbones.errors import UserError

STAGES = ("stem", "res2", "res3", "res4", "res5")
RGB = ShapeSpec(channels=3)
TOLERANCE = 1e-5  # relative, float32


def target_config(arch: str) -> CfgNode:
    """The smallest config that builds the backbone of `arch` with all its stages as output."""
    cfg = get_cfg()
    cfg.MODEL.ROBUST = CfgNode({"ARCH": arch})
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", PIXEL_MEAN, PIXEL_STD
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    return cfg


def verify(source: Checkpoint, tensors: dict[str, Tensor], size: int = 96) -> dict[str, float]:
    """Compare the features of source and target on a fixed random image.

    Args:
        source: the classifier, run as torchvision's own network.
        tensors: the converted ones, `{Detectron2 name: tensor}`, loaded into a backbone built from
            the target's config; every key and shape must agree.
        size: side of the image, pixels.

    Returns:
        `{stage: largest difference / largest value}`, for stem and res2 to res5.

    Raises:
        UserError: a key or shape does not fit, or a difference exceeds `TOLERANCE`.
    """
    backbone = build_robust_resnet_backbone(target_config(source.arch), RGB)
    try:
        backbone.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"the converted tensors do not fit: {' '.join(str(error).split())}"
        ) from None
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = source_features(source, image)
        found = backbone.eval()(image)
    differences = {}
    for stage in STAGES:
        scale = expected[stage].abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        differences[stage] = ((found[stage] - expected[stage]).abs().max() / scale).item()
    if not all(value <= TOLERANCE for value in differences.values()):
        text = ", ".join(f"{stage} {value:.1e}" for stage, value in differences.items())
        raise UserError(f"features of source and target differ by more than {TOLERANCE:g}: {text}.")
    return differences


def source_features(source: Checkpoint, image: Tensor) -> dict[str, Tensor]:
    """torchvision's features: normalised `image (N, 3, H, W)` -> `{stage: (N, C, h, w)}`."""
    classes = source.tensors["fc.weight"].shape[0] if "fc.weight" in source.tensors else 1
    network = build_network(source.arch, classes).eval()
    missing = network.load_state_dict(source.tensors, strict=False).missing_keys
    assert all(name.startswith("fc.") or name.endswith("num_batches_tracked") for name in missing)
    x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    features = {"stem": x}
    for number in range(1, 5):
        x = getattr(network, f"layer{number}")(x)
        features[f"res{number + 1}"] = x
    return features
