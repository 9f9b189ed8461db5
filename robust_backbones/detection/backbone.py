"""Robust ResNets as Detectron2 backbones, and the settings that weights of any network require.

The networks are Detectron2's own `ResNet`. The key `MODEL.ROBUST.ARCH` sets the architecture.
Settings that contradict the weights are rejected. FrozenBN is folded into the convolutions.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)

from robust_backbones import timm_networks
from robust_backbones.archs import ARCHS, RESNETS, TIMM, ResNetArch
from robust_backbones.checkpoint.formats import TIMM_BODY
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.input_statistics import (
    ASSUMED,
    GIVEN,
    IMAGENET,
    TOLERANCE,
    InputStatistics,
    assumption,
)
from robust_backbones.detection.folding import fold
from robust_backbones.detection.model_weights import arch_of, named, statistics_of

TIMM_BUILDER = "build_robust_timm_fpn_backbone"
BUILDERS = (
    "build_robust_resnet_backbone",
    "build_robust_resnet_fpn_backbone",
    "build_robust_retinanet_resnet_fpn_backbone",
    TIMM_BUILDER,
)


@BACKBONE_REGISTRY.register()
def build_robust_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet of `MODEL.ROBUST.ARCH`, with the strides in the 3x3 convolutions.

    Raises:
        UserError: the configuration contradicts the architecture, or its input format contradicts
            the weights.
    """
    return _checked(cfg, build_resnet_backbone(with_architecture(cfg), input_shape))


@BACKBONE_REGISTRY.register()
def build_robust_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the ResNet of `MODEL.ROBUST.ARCH` and an FPN with the levels `p2` to `p6`.

    Raises:
        UserError: see `build_robust_resnet_backbone`.
    """
    return _checked(cfg, build_resnet_fpn_backbone(with_architecture(cfg), input_shape))


@BACKBONE_REGISTRY.register()
def build_robust_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the ResNet of `MODEL.ROBUST.ARCH` and RetinaNet's FPN with the levels `p3` to `p7`.

    The levels `p6` and `p7` are computed from `res5`.

    Raises:
        UserError: see `build_robust_resnet_backbone`.
    """
    return _checked(cfg, build_retinanet_resnet_fpn_backbone(with_architecture(cfg), input_shape))


# Meta architecture -> sections of MODEL whose IN_FEATURES are features of the backbone.
_USERS = {
    "GeneralizedRCNN": ("RPN", "ROI_HEADS"),
    "PanopticFPN": ("RPN", "ROI_HEADS", "SEM_SEG_HEAD"),
    "RetinaNet": ("RETINANET",),
    "SemanticSegmentor": ("SEM_SEG_HEAD",),
}


def _checked(cfg: CfgNode, backbone: Backbone) -> Backbone:
    return fold(check_features(cfg, backbone))


def check_features(cfg: CfgNode, backbone: Backbone) -> Backbone:
    """Return a backbone if it has the features that the heads of `cfg` use.

    Raises:
        UserError: it has not.
    """
    has = list(backbone.output_shape())
    for section in _USERS.get(cfg.MODEL.META_ARCHITECTURE, ()):
        needed = list(cfg.MODEL[section].IN_FEATURES)
        if set(needed) <= set(has):
            continue
        fix = f"Set MODEL.{section}.IN_FEATURES to some of them."
        if section == "RETINANET" and cfg.MODEL.BACKBONE.NAME == TIMM_BUILDER:
            fix += " Give one list of MODEL.ANCHOR_GENERATOR.SIZES for each."
        elif section == "RETINANET" and cfg.MODEL.BACKBONE.NAME != BUILDERS[2]:
            fix = f"Set MODEL.BACKBONE.NAME to {BUILDERS[2]}."
        raise UserError(
            f"MODEL.{section}.IN_FEATURES is {needed}, but {cfg.MODEL.BACKBONE.NAME} has the "
            f"features {', '.join(has)}. {fix}"
        )
    return backbone


def body(backbone: Backbone) -> tuple[str, Backbone]:
    """Return the prefix of the pretrained network's tensor names, and the network itself.

    For an FPN, the prefix is `"bottom_up."`, and the network is the backbone below the FPN. For
    other backbones, the prefix is `""`, and the network is the whole backbone. In a backbone of
    timm, the tensors are in the module `network`.
    """
    inner = getattr(backbone, "bottom_up", None)
    if inner is None:
        return "", backbone
    return TIMM_BODY if hasattr(inner, "network") else "bottom_up.", inner


def with_architecture(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config with the settings of `set_architecture`.

    Pixel statistics are set in `cfg` too, because the meta architecture reads them from it.

    Raises:
        UserError: see `set_architecture`.
    """
    if "ROBUST" not in cfg.MODEL:
        raise UserError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, but MODEL.ROBUST is missing. Call "
            "robust_backbones.detection.add_robust_config(cfg) right after get_cfg()."
        )
    own = cfg.clone()
    own.defrost()
    set_architecture(own)
    # The meta architecture builds its backbone first, and then reads these keys.
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = own.MODEL.PIXEL_MEAN, own.MODEL.PIXEL_STD
    cfg.MODEL.ROBUST.STATISTICS = own.MODEL.ROBUST.STATISTICS
    if frozen:
        cfg.freeze()
    return own


def set_architecture(cfg: CfgNode, weights: str | None = None) -> None:
    """Set the keys of `MODEL.RESNETS` for `MODEL.ROBUST.ARCH`, and the input for the weights.

    A timm network has no keys in `MODEL.RESNETS`, except for `NORM`. If `MODEL.ROBUST.ARCH` is
    empty, the architecture is detected from `MODEL.WEIGHTS`. A key that has Detectron2's default
    value is set. Any other value must agree with the architecture.

    Args:
        cfg: configuration, changed in place.
        weights: published name or local file with the input statistics; None: `MODEL.WEIGHTS`;
            "": the statistics are not set.

    Raises:
        UserError: the architecture is unknown, or is not recognized in the weights, or a key
            contradicts it. The message names the key, its value and the required value.
    """
    if not cfg.MODEL.ROBUST.ARCH:
        cfg.MODEL.ROBUST.ARCH = arch_of(cfg.MODEL.WEIGHTS)
    name = cfg.MODEL.ROBUST.ARCH
    if name.startswith(TIMM):
        timm_networks.check_name(name)
    elif name not in RESNETS:
        fix = 'Set it to "" for the architecture of the weights.' if cfg.MODEL.WEIGHTS else ""
        raise UserError(
            f"MODEL.ROBUST.ARCH '{name}' is unknown. {fix} {choose_from(name, RESNETS)}"
        )
    if stated := named(cfg.MODEL.WEIGHTS):  # before the model is downloaded
        check_arch(cfg, cfg.MODEL.WEIGHTS, stated.arch)
    _check_builder(cfg)
    _set_norms(cfg)
    if not name.startswith(TIMM):
        _set_resnet(cfg)
    _set_input(cfg, cfg.MODEL.WEIGHTS if weights is None else weights)


def _check_builder(cfg: CfgNode) -> None:
    builder, arch = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROBUST.ARCH
    if builder not in BUILDERS or (builder == TIMM_BUILDER) == arch.startswith(TIMM):
        return
    needed, config = TIMM_BUILDER, "configs/coco_mask_rcnn_convnext_base_standard.yaml"
    if builder == TIMM_BUILDER:
        needed, config = BUILDERS[1], "configs/coco_mask_rcnn_standard.yaml"
    raise UserError(
        f"MODEL.BACKBONE.NAME is {builder}, but {arch} needs {needed}. Set it, and choose a "
        f"learning rate for this network, as in {config}."
    )


def _set_resnet(cfg: CfgNode) -> None:
    """Set or check the keys of `MODEL.RESNETS` for a ResNet."""
    name, defaults = cfg.MODEL.ROBUST.ARCH, get_cfg().MODEL.RESNETS
    arch = ARCHS[name]
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
    """Check `MODEL.ROBUST.ARCH` against the architecture `found` of the weights; None: unknown."""
    arch = cfg.MODEL.ROBUST.ARCH
    if found and found != arch:
        raise UserError(
            f"MODEL.ROBUST.ARCH is {arch}, but {weights} is a {found}. Set MODEL.ROBUST.ARCH to "
            f'{found} or "", or choose other weights.'
        )


# Normalization layers that can load the running statistics of pretrained weights.
_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def _set_input(cfg: CfgNode, weights: str) -> None:
    """Set `MODEL.PIXEL_MEAN` and `MODEL.PIXEL_STD` for the weights, and check `INPUT.FORMAT`.

    ImageNet's values, as in the packaged configs, are replaced if the weights state others, or if
    others were assumed for the network when its weights were converted. Other values must agree
    with the weights. `MODEL.ROBUST.STATISTICS` records their source. If
    the weights are not on this machine yet, only the format is checked.
    """
    if cfg.INPUT.FORMAT != "RGB":
        raise _contradiction("INPUT.FORMAT", cfg.INPUT.FORMAT, "RGB", _TRAINING)
    readable = bool(named(weights)) or Path(weights).is_file()
    stated = (statistics_of(weights) if readable else None) or IMAGENET.of(ASSUMED)
    source = stated.source
    if source == ASSUMED and _differ_from_imagenet(cfg) and not _agree(cfg, stated):
        source = GIVEN
    else:
        _set_pixels(cfg, stated, weights)
    if source == ASSUMED != cfg.MODEL.ROBUST.get("STATISTICS") and readable:
        logging.getLogger(__name__).warning(assumption(stated, weights, _STATE_THEM))
    if readable:
        cfg.MODEL.ROBUST.STATISTICS = source


_TRAINING = "weights trained on RGB images with ImageNet statistics"
_STATE_THEM = (
    "Convert the classifier with --mean and --std or with --statistics PRESET, or set "
    "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD."
)


def _set_pixels(cfg: CfgNode, stated: InputStatistics, weights: str) -> None:
    for key, needed, usual in zip(_PIXELS, stated.pixels, IMAGENET.pixels, strict=True):
        found = list(cfg.MODEL[key])
        if same_pixels(found, needed):
            continue
        if not same_pixels(found, usual):
            raise _contradiction(f"MODEL.{key}", found, needed, f"the weights {weights}")
        cfg.MODEL[key] = needed
        logging.getLogger(__name__).warning(
            "MODEL.%s is set to %s, as the weights %s require.", key, needed, weights
        )


def _agree(cfg: CfgNode, stated: InputStatistics) -> bool:
    pairs = zip(_PIXELS, stated.pixels, strict=True)
    return all(same_pixels(cfg.MODEL[key], needed) for key, needed in pairs)


def _differ_from_imagenet(cfg: CfgNode) -> bool:
    """Return whether the config states other statistics than ImageNet's.

    Detectron2's defaults are for BGR images. They contradict `INPUT.FORMAT`.
    """
    differ, defaults = False, get_cfg().MODEL
    for key, usual in zip(_PIXELS, IMAGENET.pixels, strict=True):
        found = list(cfg.MODEL[key])
        if len(found) != 3 or found == list(defaults[key]):
            raise _contradiction(f"MODEL.{key}", found, usual, _TRAINING)
        differ |= not same_pixels(found, usual)
    return differ


_PIXELS = ("PIXEL_MEAN", "PIXEL_STD")


def same_pixels(one: Sequence[float], two: Sequence[float]) -> bool:
    """Return whether two means or standard deviations for pixels in [0, 255] are equal."""
    limit = 255 * TOLERANCE
    return len(one) == len(two) and all(abs(a - b) <= limit for a, b in zip(one, two, strict=True))


def _contradiction(key: str, found: object, needed: object, reason: str) -> UserError:
    return UserError(f"{key} is {found}, but {reason} require {needed}. Set {key} to {needed}.")
