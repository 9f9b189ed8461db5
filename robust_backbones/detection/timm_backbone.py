"""timm networks as Detectron2 backbones, with timm's tensor names.

Networks whose maps have growing strides feed Detectron2's FPN. Plain transformers, whose maps all
have the same stride, feed a simple feature pyramid (Li et al. 2022).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_backbones import timm_networks
from robust_backbones.core.errors import UserError
from robust_backbones.detection.backbone import check_features, with_architecture
from robust_backbones.meta_device import meta_device

PROBE = (256, 320)  # height and width of the image with which maps are measured
LEVELS = ("res2", "res3", "res4", "res5")  # maps of stride 4, 8, 16 and 32, as in Detectron2
# Value of MODEL.RESNETS.NORM -> function that converts the BatchNorm layers of a network.
NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "FrozenBN": lambda network: network,  # frozen by `TimmNetwork.train`
    "BN": lambda network: network,
    "SyncBN": lambda network: timm_networks.library().layers.convert_sync_batchnorm(network),
}


@BACKBONE_REGISTRY.register()
def build_robust_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the timm network that `MODEL.ROBUST.ARCH` names, and a pyramid `p2` to `p6`.

    RetinaNet gets the levels `p3` to `p7`, except on plain transformers.

    Raises:
        UserError: timm is not installed, the network has no feature maps for a pyramid or cannot
            process images of any size, or it does not support a setting.
    """
    cfg = with_architecture(cfg)
    robust, fpn = cfg.MODEL.ROBUST, cfg.MODEL.FPN
    levels = list(feature_maps(robust.ARCH))
    plain = len(levels) == 1
    body = TimmNetwork(
        robust.ARCH,
        levels if plain else fpn.IN_FEATURES,
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        drop_path=robust.DROP_PATH,
        checkpointing=robust.CHECKPOINTING,
    )
    if plain:
        return check_features(cfg, SimplePyramid(body, fpn.OUT_CHANNELS, fpn.NORM))
    top: nn.Module = LastLevelMaxPool()
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        top = LastLevelP6P7(body.output_shape()["res5"].channels, fpn.OUT_CHANNELS)
    pyramid = FPN(body, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top, fpn.FUSE_TYPE)
    return check_features(cfg, pyramid)


@cache
def _probe(arch: str) -> tuple[nn.Module, list[Tensor]]:
    """Return a timm network without values, and all of its maps of one image."""
    with meta_device():
        network: Any = timm_networks.build(arch, 0).eval()
    with torch.device("meta"):
        if not hasattr(network, "forward_intermediates"):
            raise UserError(f"{arch} has no feature maps in timm. Choose another network.")
        try:
            image = torch.empty(1, 3, *PROBE)
            return network, network.forward_intermediates(image, intermediates_only=True)
        except (AssertionError, RuntimeError, ValueError) as error:  # timm's checks of the size
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(
                f"{arch} cannot process images of {PROBE[0]}x{PROBE[1]} pixels, but detectors need "
                f"images of any size: {reason}. Choose another network."
            ) from None


def feature_maps(arch: str) -> dict[str, tuple[int, int]]:
    """Measure the feature maps of a timm network.

    Args:
        arch: `timm:NAME`.

    Returns:
        `{"res2", ...: (index in forward_intermediates, channels)}`. Of several maps with the same
        stride, it is the last.

    Raises:
        UserError: timm has no such network, the network has no maps, depends on the image size, or
            has maps of other strides.
    """
    _, maps = _probe(arch)
    strides = [round(PROBE[0] / m.shape[-2]) for m in maps]
    found = {
        f"res{stride.bit_length() - 1}": (index, maps[index].shape[1])
        for index, stride in enumerate(strides)
        if stride in (4, 8, 16, 32)
    }
    plain = set(strides) in ({8}, {16}, {32})
    if not plain and tuple(found) != LEVELS:
        raise UserError(
            f"{arch} has feature maps of stride {', '.join(map(str, sorted(set(strides))))}. A "
            "pyramid needs maps of stride 4, 8, 16 and 32, or only of stride 8, 16 or 32. Choose "
            "another network."
        )
    return found


class TimmNetwork(Backbone):
    """A timm network without its classifier. It returns feature maps `{"res2": ...}`.

    Parameters that no returned map depends on are frozen, such as a normalization before the
    classifier: distributed training requires a gradient for all others. Frozen parts are always in
    eval mode: their BatchNorm statistics are constant, and no path is dropped.

    Args:
        arch: `timm:NAME`.
        levels: names of the maps to return; None: all.
        norm: BatchNorm layers of the network, a key of `NORMS`.
        freeze_at: number of frozen parts: 1 freezes the stem, 2 also the first stage (or block of a
            plain transformer), and so on.
        drop_path: largest probability of dropping a residual path during training.
        checkpointing: whether the backward pass computes activations again, which saves memory.

    Raises:
        UserError: the network has no such map, or does not support an argument.
    """

    network: Any  # timm's classes have no common type

    def __init__(
        self,
        arch: str,
        levels: list[str] | None = None,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ):
        super().__init__()
        maps = feature_maps(arch)
        self.arch, self.norm, self.levels = arch, norm, list(levels or maps)
        if unknown := [name for name in self.levels if name not in maps]:
            raise UserError(f"{arch} has no map {unknown[0]}. Choose from {', '.join(maps)}.")
        if norm not in NORMS:
            raise UserError(
                f"MODEL.RESNETS.NORM is '{norm}', which timm networks do not support. Choose "
                f"from {', '.join(NORMS)}."
            )
        options = {"drop_path_rate": drop_path} if drop_path else {}
        if options.keys() - timm_networks.arguments(arch):
            raise UserError(
                f"MODEL.ROBUST.DROP_PATH is {drop_path:g}, but {arch} does not support drop path. "
                "Set it to 0."
            )
        self.network = NORMS[norm](timm_networks.build(arch, 0, **options))
        self.indices = [maps[name][0] for name in self.levels]
        self._shapes = {n: ShapeSpec(maps[n][1], stride=1 << int(n[3:])) for n in self.levels}
        if checkpointing:
            self.network.set_grad_checkpointing(True)
        self.used = _used(arch, tuple(self.indices))
        frozen = {n for n in self.used if freeze_at and self._groups(coarse=True)[n] < freeze_at}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in self.used - frozen)
        for module in self.network.modules():
            if norm == "FrozenBN" and isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalized images `(N, 3, H, W)` to feature maps `{name: (N, C, h, w)}`."""
        maps = self.network.forward_intermediates(
            x, indices=self.indices, stop_early=True, intermediates_only=True
        )
        return dict(zip(self.levels, maps, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each map."""
        return self._shapes

    def train(self, mode: bool = True) -> "TimmNetwork":
        """Set the mode of all parts that are not frozen."""
        super().train(mode)
        for module in self.network.modules():
            own = list(module.parameters())
            frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
            if frozen or self.norm == "FrozenBN" and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def layers(self, blocks: int) -> dict[str, int]:
        """Divide the network into layers, for layer-wise learning rates.

        The stem is layer 0. Each further layer has several consecutive blocks of a stage.

        Args:
            blocks: number of blocks in a layer. A layer does not continue in the next stage.

        Returns:
            `{name of a parameter: number of its layer}`, without the classifier's parts.
        """
        stages, ordered = self._groups(coarse=True), self._groups(coarse=False)
        first: dict[int, int] = {}
        for name in sorted(self.used, key=lambda n: ordered[n]):
            first.setdefault(stages[name], ordered[name])
        places = {n: (stages[n], (ordered[n] - first[stages[n]]) // blocks) for n in self.used}
        numbers = {place: number for number, place in enumerate(sorted(set(places.values())))}
        return {name: numbers[place] for name, place in places.items()}

    def without_decay(self) -> list[str]:
        """Return patterns of the names of parameters that timm exempts from weight decay."""
        exempt = getattr(self.network, "no_weight_decay", tuple)
        return sorted(exempt())

    def _groups(self, coarse: bool) -> dict[str, int]:
        """Return timm's number of the stage (coarse) or the block of each parameter."""
        if not hasattr(self.network, "group_matcher"):
            raise UserError(
                f"timm does not divide {self.arch} into stages. Set MODEL.BACKBONE.FREEZE_AT to 0 "
                "and SOLVER.LAYER_DECAY to 1."
            )
        matcher = self.network.group_matcher(coarse=coarse)
        return timm_networks.library().models.group_parameters(self.network, matcher, reverse=True)


@cache
def _used(arch: str, indices: tuple[int, ...]) -> frozenset[str]:
    """Return the names of the parameters that the maps with these indices depend on."""
    network, maps = _probe(arch)
    names, parameters = zip(*network.named_parameters(), strict=True)
    outputs = torch.stack([maps[index].sum() for index in indices]).sum()
    gradients = torch.autograd.grad(outputs, parameters, allow_unused=True, retain_graph=True)
    return frozenset(n for n, g in zip(names, gradients, strict=True) if g is not None)


class SimplePyramid(Backbone):
    """Feature pyramid on the last map of a plain transformer, `p2` to `p6`, as in ViTDet.

    Transposed convolutions enlarge the map, and max pooling makes it smaller. As in ViTDet, a 1x1
    and a 3x3 convolution follow at each level.

    Args:
        body: network with one map, of stride 8, 16 or 32.
        channels: number of output channels.
        norm: normalization of the convolutions, as for Detectron2's `get_norm`; "": LayerNorm over
            the channels, as in ViTDet.
    """

    def __init__(self, body: TimmNetwork, channels: int, norm: str = ""):
        super().__init__()
        layer_norm = timm_networks.library().layers.LayerNorm2d
        (self._map, shape) = next(iter(body.output_shape().items()))
        self.bottom_up, self._levels = body, ["p2", "p3", "p4", "p5"]
        for level in (2, 3, 4, 5):
            layers: list[nn.Module] = []
            width, doublings = shape.channels, shape.stride.bit_length() - 1 - level
            for _ in range(doublings):
                layers += [layer_norm(width), nn.GELU()] if layers else []
                layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
                width //= 2
            if doublings < 0:
                layers.append(nn.MaxPool2d(1 << -doublings))
            for kernel in (1, 3):
                after = get_norm(norm, channels) if norm else layer_norm(channels)
                layers.append(
                    Conv2d(width, channels, kernel, padding=kernel // 2, bias=False, norm=after)
                )
                width = channels
            self.add_module(f"simfp_{level}", nn.Sequential(*layers))
        self.top_block = LastLevelMaxPool()
        strides = {f"p{level}": 1 << level for level in range(2, 7)}
        self._shapes = {name: ShapeSpec(channels, stride=s) for name, s in strides.items()}

    @property
    def size_divisibility(self) -> int:
        """Number of which height and width of the images must be multiples."""
        return 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each level."""
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalized images `(N, 3, H, W)` to `{"p2": (N, C, H/4, W/4), ...}`."""
        features = self.bottom_up(x)[self._map]
        found = [self.get_submodule(f"simfp_{name[1]}")(features) for name in self._levels]
        return dict(zip(self._shapes, found + self.top_block(found[-1]), strict=True))
