"""Verify that a converted backbone computes the features of its source, stage by stage."""

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
    """Return the smallest config of a backbone of `arch`, with all stages as outputs."""
    cfg = get_cfg()
    cfg.MODEL.ROBUST = CfgNode({"ARCH": arch, "NORM": ""})
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", PIXEL_MEAN, PIXEL_STD
    cfg.MODEL.RESNETS.OUT_FEATURES = list(verify.STAGES)
    return cfg


def verify_backbone(source: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Compare the features of torchvision's and Detectron2's network on a fixed random image.

    Args:
        source: the classifier.
        tensors: converted tensors, `{Detectron2 name: tensor}`. They are loaded into a backbone
            built from `target_config`; all names and shapes must agree.

    Returns:
        `{stage: largest difference / largest value}`, for stem and res2 to res5.

    Raises:
        UserError: a name or shape differs, or a difference exceeds the tolerance.
    """
    image = verify.fixed_image()
    with torch.device("meta"):  # no initialization: all tensors are replaced
        backbone = build_robust_resnet_backbone(target_config(source.arch), RGB).eval()
    try:
        backbone.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise UserError(f"The converted tensors do not fit the backbone: {text}") from None
    with torch.no_grad():
        found = backbone(image)
    return verify.compare_features(
        verify.network_features(source.arch, source.tensors, image), found
    )
