"""Build a backbone with pretrained weights, without a config and a detector."""

from pathlib import Path

from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import Backbone
from torch import nn

from robust_backbones.archs import TIMM
from robust_backbones.core.input_statistics import (
    ASSUMED,
    IMAGENET,
    InputStatistics,
    warn_if_assumed,
)
from robust_backbones.core.resources import get_config_file
from robust_backbones.detection.backbone import BUILDERS, TIMM_BUILDER, body
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.config import add_robust_config
from robust_backbones.detection.model_weights import arch_of, local_weights, statistics_of


def load_backbone(weights: str | Path) -> tuple[Backbone, InputStatistics]:
    """Build a Detectron2 backbone with pretrained weights, for detectors of your own.

    All tensors of the backbone come from the weights. Its BatchNorm layers are frozen. All other
    parameters are trainable. `Trainer` and configs need no call of this function: they build the
    backbone that `MODEL.WEIGHTS` names.

    Args:
        weights: published name such as `robust://resnet50_l2_eps3`, weights of a library, or a
            file of `convert_weights`.

    Returns:
        The backbone and its input statistics. The backbone maps normalized RGB images
        `(N, 3, H, W)`, `(x - mean) / std` for x in [0, 1], to `{"res2": ..., "res5": ...}` with the
        strides 4 to 32. For a plain transformer, the dictionary has one map.

    Raises:
        UserError: the weights cannot be fetched, are not a backbone, or lack a tensor.
    """
    weights = str(weights)
    cfg = get_cfg()
    add_robust_config(cfg)
    cfg.merge_from_file(get_config_file("base/robust_resnet_fpn.yaml"))
    cfg.MODEL.ROBUST.ARCH = arch = arch_of(weights)
    cfg.MODEL.BACKBONE.NAME = TIMM_BUILDER if arch.startswith(TIMM) else BUILDERS[1]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.WEIGHTS = str(local_weights(weights))
    statistics = statistics_of(cfg.MODEL.WEIGHTS) or IMAGENET.of(ASSUMED)
    warn_if_assumed(statistics, weights)
    pyramid = build_backbone(cfg)
    loader = StrictCheckpointer(nn.ModuleDict({"backbone": pyramid}))
    loader.load(cfg.MODEL.WEIGHTS, checkpointables=[])  # []: the pyramid keeps its random weights
    return body(pyramid)[1], statistics
