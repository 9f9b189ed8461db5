"""Robust ResNets as Detectron2 backbones.

The networks are Detectron2's own `ResNet`. The key `MODEL.ROBUST.ARCH` sets the architecture.
Settings that contradict the weights are rejected. FrozenBN is folded into the convolutions.
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

from robust_backbones.core.errors import UserError, choose_from
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
    """Build the ResNet of `MODEL.ROBUST.ARCH`, with the strides in the 3x3 convolutions.

    Raises:
        UserError: the configuration contradicts the architecture, or its input format contradicts
            the weights.
    """
    return _checked(cfg, build_resnet_backbone(_with_architecture(cfg), input_shape))


@BACKBONE_REGISTRY.register()
def build_robust_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the ResNet of `MODEL.ROBUST.ARCH` and an FPN with the levels `p2` to `p6`.

    Raises:
        UserError: see `build_robust_resnet_backbone`.
    """
    return _checked(cfg, build_resnet_fpn_backbone(_with_architecture(cfg), input_shape))


@BACKBONE_REGISTRY.register()
def build_robust_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the ResNet of `MODEL.ROBUST.ARCH` and RetinaNet's FPN with the levels `p3` to `p7`.

    The levels `p6` and `p7` are computed from `res5`.

    Raises:
        UserError: see `build_robust_resnet_backbone`.
    """
    return _checked(cfg, build_retinanet_resnet_fpn_backbone(_with_architecture(cfg), input_shape))


# Meta architecture -> sections of MODEL whose IN_FEATURES are features of the backbone.
_USERS = {
    "GeneralizedRCNN": ("RPN", "ROI_HEADS"),
    "PanopticFPN": ("RPN", "ROI_HEADS", "SEM_SEG_HEAD"),
    "RetinaNet": ("RETINANET",),
    "SemanticSegmentor": ("SEM_SEG_HEAD",),
}


def _checked(cfg: CfgNode, backbone: Backbone) -> Backbone:
    """Fold a backbone, and check that it has the features that the heads of `cfg` use."""
    has = list(backbone.output_shape())
    for section in _USERS.get(cfg.MODEL.META_ARCHITECTURE, ()):
        needed = list(cfg.MODEL[section].IN_FEATURES)
        if set(needed) <= set(has):
            continue
        fix = f"Set MODEL.{section}.IN_FEATURES to some of them."
        if section == "RETINANET" and cfg.MODEL.BACKBONE.NAME != BUILDERS[2]:
            fix = f"Set MODEL.BACKBONE.NAME to {BUILDERS[2]}."
        raise UserError(
            f"MODEL.{section}.IN_FEATURES is {needed}, but {cfg.MODEL.BACKBONE.NAME} has the "
            f"features {', '.join(has)}. {fix}"
        )
    return fold(backbone)


def body(backbone: Backbone) -> tuple[str, Backbone]:
    """Return the prefix of the pretrained network's tensor names, and the network itself.

    For an FPN, the prefix is `"bottom_up."`, and the network is the backbone below the FPN. For
    other backbones, the prefix is `""`, and the network is the whole backbone.
    """
    inner = getattr(backbone, "bottom_up", None)
    return ("", backbone) if inner is None else ("bottom_up.", inner)


def _with_architecture(cfg: CfgNode) -> CfgNode:
    if "ROBUST" not in cfg.MODEL:
        raise UserError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, but MODEL.ROBUST is missing. Call "
            "robust_backbones.detection.add_robust_config(cfg) right after get_cfg()."
        )
    cfg = cfg.clone()
    cfg.defrost()
    set_architecture(cfg)
    return cfg


def set_architecture(cfg: CfgNode) -> None:
    """Set the keys of `MODEL.RESNETS` for `MODEL.ROBUST.ARCH`, and check the input format.

    If `MODEL.ROBUST.ARCH` is empty, the architecture is detected from `MODEL.WEIGHTS`. A key that
    has Detectron2's default value is set. Any other value must agree with the architecture.

    Raises:
        UserError: the architecture is unknown, or is not recognized in the weights, or a key
            contradicts it. The message names the key, its value and the required value.
    """
    if not cfg.MODEL.ROBUST.ARCH:
        cfg.MODEL.ROBUST.ARCH = arch_of(cfg.MODEL.WEIGHTS)
    name = cfg.MODEL.ROBUST.ARCH
    if name not in RESNETS:
        fix = 'Set it to "" for the architecture of the weights.' if cfg.MODEL.WEIGHTS else ""
        raise UserError(
            f"MODEL.ROBUST.ARCH '{name}' is unknown. {fix} {choose_from(name, RESNETS)}"
        )
    if cfg.MODEL.WEIGHTS.startswith(SCHEME):  # before the model is downloaded
        check_arch(cfg, cfg.MODEL.WEIGHTS, find_resnet(cfg.MODEL.WEIGHTS).arch)
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
            f"MODEL.RESNETS.NORM is '{cfg.MODEL.RESNETS.NORM}', but the weights have BatchNorm "
            f"statistics. Choose from {', '.join(_NORMS)}."
        )
    _check_input(cfg)


# Value of `MODEL.ROBUST.NORM` -> the keys that it sets, and their values.
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
        raise UserError(f"MODEL.ROBUST.NORM '{name}' is unknown. Choose from '', 'sync'.")
    for key, value in NORMS[name].items():
        cfg.merge_from_list([key, value])


def check_arch(cfg: CfgNode, weights: str, found: str | None) -> None:
    """Check that `MODEL.ROBUST.ARCH` is the architecture `found` of the weights; None: unknown."""
    arch = cfg.MODEL.ROBUST.ARCH
    if found and found != arch:
        raise UserError(
            f"MODEL.ROBUST.ARCH is {arch}, but {weights} is a {found}. Set MODEL.ROBUST.ARCH to "
            f'{found}, to "", or choose other weights.'
        )


# Normalization layers that can load the running statistics of pretrained weights.
_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def _check_input(cfg: CfgNode) -> None:
    reason = "weights trained on RGB images with ImageNet statistics"
    if cfg.INPUT.FORMAT != "RGB":
        raise _contradiction("INPUT.FORMAT", cfg.INPUT.FORMAT, "RGB", reason)
    for key, needed in (("PIXEL_MEAN", PIXEL_MEAN), ("PIXEL_STD", PIXEL_STD)):
        found = list(cfg.MODEL[key])
        if len(found) != 3 or any(abs(a - b) > 0.01 for a, b in zip(found, needed, strict=True)):
            raise _contradiction(f"MODEL.{key}", found, needed, reason)


def _contradiction(key: str, found: object, needed: object, reason: str) -> UserError:
    return UserError(f"{key} is {found}, but {reason} require {needed}. Set {key} to {needed}.")
