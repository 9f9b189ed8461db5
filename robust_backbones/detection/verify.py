"""Verify that a converted backbone computes the same features as its source at each stage."""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor

from robust_backbones.archs import TIMM
from robust_backbones.checkpoint import verify
from robust_backbones.checkpoint.architectures import BATCH_COUNTER
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import IMAGENET
from robust_backbones.detection.backbone import build_robust_resnet_backbone
from robust_backbones.detection.timm_backbone import TimmNetwork

RGB = ShapeSpec(channels=3)


def target_config(arch: str) -> CfgNode:
    """Return a minimal config of a backbone with architecture `arch` that outputs all stages."""
    cfg = get_cfg()
    cfg.MODEL.ROBUST = CfgNode({"ARCH": arch, "NORM": "", "STATISTICS": ""})
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = IMAGENET.pixels  # not used by a backbone
    cfg.MODEL.RESNETS.OUT_FEATURES = list(verify.STAGES)
    return cfg


def verify_backbone(source: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Compare the features of the source and the converted network on a fixed random image.

    Args:
        source: checkpoint of the classifier, with torchvision's or timm's names.
        tensors: converted tensors, `{Detectron2 name: tensor}`. They are loaded into a backbone
            built from `target_config`, or a `TimmNetwork`. All names and shapes must agree.

    Returns:
        The relative difference of each stage, `{stage: largest difference / largest value}`, for
        stem and res2 to res5, or for all maps of a timm network.

    Raises:
        UserError: a name or shape differs, or a difference exceeds the tolerance.
    """
    image = verify.fixed_image(source.arch)
    timm = source.arch.startswith(TIMM)
    with torch.device("meta"):  # skips initialization, because all tensors are replaced
        backbone: Any = (
            TimmNetwork(source.arch)
            if timm
            else build_robust_resnet_backbone(target_config(source.arch), RGB)
        ).eval()
    network = backbone.network if timm else backbone
    counters = {name: t for name, t in network.state_dict().items() if BATCH_COUNTER in name}
    try:  # old files have no counters, and they have no effect on features
        network.load_state_dict(counters | tensors, strict=True, assign=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise UserError(f"The converted tensors do not fit the backbone: {text}") from None
    with torch.no_grad():
        found = backbone(image)
    expected = verify.network_features(source.arch, source.tensors, image)
    if timm:
        expected = {
            level: expected[str(index)]
            for level, index in zip(backbone.levels, backbone.indices, strict=True)
        }
    return verify.compare_features(expected, found)
