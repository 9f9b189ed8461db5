"""Verify that a converted backbone computes the same features as its source at each stage."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor

from robust_backbones.checkpoint import verify
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import IMAGENET
from robust_backbones.detection.backbone import build_robust_resnet_backbone

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
        source: checkpoint of the classifier, with torchvision's names.
        tensors: converted tensors, `{Detectron2 name: tensor}`. They are loaded into a backbone
            built from `target_config`. All names and shapes must agree.

    Returns:
        The relative difference of each stage, `{stage: largest difference / largest value}`, for
        stem and res2 to res5.

    Raises:
        UserError: a name or shape differs, or a difference exceeds the tolerance.
    """
    image = verify.fixed_image(source.arch)
    with torch.device("meta"):  # skips initialization, because all tensors are replaced
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
