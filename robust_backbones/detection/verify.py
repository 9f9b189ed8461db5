"""Proof that a converted backbone computes what its source computes, stage by stage."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor

from robust_backbones.checkpoint import verify
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.detection.backbone import build_robust_resnet_backbone
from robust_backbones.zoo import PIXEL_MEAN, PIXEL_STD

RGB = ShapeSpec(channels=3)


def target_config(arch: str) -> CfgNode:
    """The smallest config that builds the backbone of `arch` with all its stages as output."""
    cfg = get_cfg()
    cfg.MODEL.ROBUST = CfgNode({"ARCH": arch, "NORM": ""})
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", PIXEL_MEAN, PIXEL_STD
    cfg.MODEL.RESNETS.OUT_FEATURES = list(verify.STAGES)
    return cfg


def verify_backbone(source: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Compare the features of torchvision's network and of Detectron2's on a fixed random image.

    Args:
        source: the classifier.
        tensors: the converted ones, `{Detectron2 name: tensor}`, loaded into a backbone built from
            the target's config; every key and shape must agree.

    Returns:
        `{stage: largest difference / largest value}`, for stem and res2 to res5.

    Raises:
        UserError: a key or shape does not fit, or a difference exceeds the tolerance.
    """
    image = verify.fixed_image()
    with torch.device("meta"):  # no time spent on random weights that are replaced
        backbone = build_robust_resnet_backbone(target_config(source.arch), RGB).eval()
    try:
        backbone.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise UserError(f"the converted tensors do not fit: {text}") from None
    with torch.no_grad():
        found = backbone(image)
    return verify.compare_features(
        verify.network_features(source.arch, source.tensors, image), found
    )
