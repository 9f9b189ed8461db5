"""Robust ResNets as Detectron2 backbones.

They are Detectron2's own `ResNet`: what is added is the choice of architecture by one key, the
refusal of any setting that contradicts the weights, and faster FrozenBN.
"""

import logging

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)

from robust_backbones.core.errors import UserError
from robust_backbones.detection.folding import fold
from robust_backbones.detection.model_weights import arch_of
from robust_backbones.zoo import (
    ARCHS,
    PIXEL_MEAN,
    PIXEL_STD,
    RESNETS,
    SCHEME,
    ResNetArch,
    find_resnet,
)

BUILDERS = (
    "build_robust_resnet_backbone",
    "build_robust_resnet_fpn_backbone",
    "build_robust_retinanet_resnet_fpn_backbone",
)


@BACKBONE_REGISTRY.register()
def build_robust_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The ResNet named by `MODEL.ROBUST.ARCH`, with torchvision's stride placement.

    Raises:
        UserError: the config contradicts the architecture or the input that its weights need.
    """
    return fold(build_resnet_backbone(_checked(cfg), input_shape))


@BACKBONE_REGISTRY.register()
def build_robust_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same ResNet below a feature pyramid, `p2` to `p6`. Raises as above."""
    return fold(build_resnet_fpn_backbone(_checked(cfg), input_shape))


@BACKBONE_REGISTRY.register()
def build_robust_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The pyramid of RetinaNet, `p3` to `p7`, the last two made of `res5`. Raises as above."""
    return fold(build_retinanet_resnet_fpn_backbone(_checked(cfg), input_shape))


def body(backbone: Backbone) -> tuple[str, Backbone]:
    """The network that pretrained weights are for, and its name inside `backbone` (`""` or
    `"bottom_up."`)."""
    inner = getattr(backbone, "bottom_up", None)
    return ("", backbone) if inner is None else ("bottom_up.", inner)


def _checked(cfg: CfgNode) -> CfgNode:
    if "ROBUST" not in cfg.MODEL:
        raise UserError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, but there is no MODEL.ROBUST; call "
            "robust_backbones.detection.add_robust_config(cfg) right after get_cfg()."
        )
    cfg = cfg.clone()
    cfg.defrost()
    set_architecture(cfg)
    return cfg


def set_architecture(cfg: CfgNode) -> None:
    """Set the keys of `MODEL.RESNETS` for `MODEL.ROBUST.ARCH`, and check the input format.

    An empty `MODEL.ROBUST.ARCH` is taken from `MODEL.WEIGHTS`. Keys with Detectron2's default are
    set. Other values that differ from the architecture's are refused.

    Raises:
        UserError: the architecture is unknown, cannot be taken from the weights, or is contradicted
            by a key; the message names the key, its value and the required value.
    """
    if not cfg.MODEL.ROBUST.ARCH:
        cfg.MODEL.ROBUST.ARCH = arch_of(cfg.MODEL.WEIGHTS)
    name = cfg.MODEL.ROBUST.ARCH
    if name not in RESNETS:
        raise UserError(f"MODEL.ROBUST.ARCH '{name}' is unknown. Choose from {', '.join(RESNETS)}.")
    _check_name(cfg)
    _set_norms(cfg)
    arch, defaults = ARCHS[name], get_cfg().MODEL.RESNETS
    assert isinstance(arch, ResNetArch)
    needed = {
        "DEPTH": arch.depth,
        "NUM_GROUPS": arch.groups,
        "WIDTH_PER_GROUP": arch.width_per_group,
        "STEM_OUT_CHANNELS": 64,
        "RES2_OUT_CHANNELS": arch.res2_channels,
        "STRIDE_IN_1X1": False,
    }
    for key, value in needed.items():
        found = cfg.MODEL.RESNETS[key]
        if found == value:
            continue
        if found != defaults[key]:
            raise _contradiction(f"MODEL.RESNETS.{key}", found, value, f"{name} weights")
        cfg.MODEL.RESNETS[key] = value
        logging.getLogger(__name__).info("%s sets MODEL.RESNETS.%s to %s", name, key, value)
    if cfg.MODEL.RESNETS.NORM not in _NORMS:
        raise UserError(
            f"MODEL.RESNETS.NORM is '{cfg.MODEL.RESNETS.NORM}', which has no place for the "
            f"weights' BatchNorm; one of: {', '.join(_NORMS)}."
        )
    _check_input(cfg)


# What `MODEL.ROBUST.NORM` stands for.
NORMS = {
    "": {},
    "sync": {
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.FPN.NORM": "SyncBN",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "TEST.PRECISE_BN.ENABLED": True,
    },
}


def _set_norms(cfg: CfgNode) -> None:
    name = cfg.MODEL.ROBUST.NORM
    if name not in NORMS:
        raise UserError(f"MODEL.ROBUST.NORM '{name}' is unknown; one of: '', 'sync'.")
    for key, value in NORMS[name].items():
        cfg.merge_from_list([key, value])


def _check_name(cfg: CfgNode) -> None:
    """Refuse an architecture other than that of a published model, before its download."""
    weights, arch = cfg.MODEL.WEIGHTS, cfg.MODEL.ROBUST.ARCH
    if weights.startswith(SCHEME) and (found := find_resnet(weights).arch) != arch:
        raise UserError(
            f"MODEL.ROBUST.ARCH is {arch}, but {weights} is a {found}. Set MODEL.ROBUST.ARCH to "
            f'{found}, to "", or choose other weights.'
        )


# Norm layers that hold the statistics which pretrained weights bring.
_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def _check_input(cfg: CfgNode) -> None:
    why = "weights trained on RGB images with ImageNet statistics"
    if cfg.INPUT.FORMAT != "RGB":
        raise _contradiction("INPUT.FORMAT", cfg.INPUT.FORMAT, "RGB", why)
    for key, needed in (("PIXEL_MEAN", PIXEL_MEAN), ("PIXEL_STD", PIXEL_STD)):
        found = list(cfg.MODEL[key])
        if len(found) != 3 or any(abs(a - b) > 0.01 for a, b in zip(found, needed, strict=True)):
            raise _contradiction(f"MODEL.{key}", found, needed, why)


def _contradiction(key: str, found: object, needed: object, why: str) -> UserError:
    return UserError(f"{key} is {found}, but {why} need {needed}; set {key} to {needed}.")
