"""Table of the supported architectures.

This module does not import torch.
"""

from dataclasses import dataclass

from robust_backbones.core.errors import UserError, choose_from


@dataclass(frozen=True)
class Arch:
    """An architecture that torchvision can build.

    Attributes:
        head: name of the last layer, which may have any number of classes.
        marker: name of a tensor that identifies the architecture or its family.
        feature_dim: input dimension of the head.
    """

    head: str
    marker: str
    feature_dim: int


@dataclass(frozen=True)
class ResNetArch(Arch):
    """A torchvision ResNet. Bottleneck blocks have their stride in the 3x3 convolution.

    Attributes:
        blocks: number of residual blocks in each of `layer1` to `layer4`.
        bottleneck: whether a block has 1x1, 3x3 and 1x1 convolutions instead of two 3x3
            convolutions.
        groups, width_per_group: torchvision's arguments for the 3x3 convolutions.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    groups: int
    width_per_group: int

    @property
    def depth(self) -> int:
        """Number of layers, as in the name of the network. Detectron2 calls it `DEPTH`."""
        return sum(self.blocks) * (3 if self.bottleneck else 2) + 2

    @property
    def res2_channels(self) -> int:
        """Number of output channels of `layer1`. Detectron2 calls it `RES2_OUT_CHANNELS`."""
        return self.feature_dim // 8


def _resnet(
    blocks: tuple[int, int, int, int],
    bottleneck: bool = True,
    groups: int = 1,
    width_per_group: int = 64,
) -> ResNetArch:
    features = 2048 if bottleneck else 512
    return ResNetArch(
        "fc", "layer1.0.conv1.weight", features, blocks, bottleneck, groups, width_per_group
    )


ARCHS: dict[str, Arch] = {
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
    "resnet50": _resnet((3, 4, 6, 3)),
    "resnet101": _resnet((3, 4, 23, 3)),
    "resnet152": _resnet((3, 8, 36, 3)),
    "wide_resnet50_2": _resnet((3, 4, 6, 3), width_per_group=128),
    "wide_resnet50_4": _resnet((3, 4, 6, 3), width_per_group=256),  # not in torchvision
    "wide_resnet101_2": _resnet((3, 4, 23, 3), width_per_group=128),
    "resnext50_32x4d": _resnet((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": _resnet((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": _resnet((3, 4, 23, 3), groups=64, width_per_group=4),
    "densenet161": Arch("classifier", "features.denseblock1.denselayer1.conv1.weight", 2208),
    "mnasnet1_0": Arch("classifier.1", "layers.8.0.layers.0.weight", 1280),
    "mobilenet_v2": Arch("classifier.1", "features.1.conv.0.0.weight", 1280),
    "shufflenet_v2_x1_0": Arch("fc", "stage2.0.branch1.0.weight", 1024),
    "vgg16_bn": Arch("classifier.6", "features.40.weight", 4096),
}

# Architectures for which Detectron2 has a backbone.
RESNETS = tuple(name for name, arch in ARCHS.items() if isinstance(arch, ResNetArch))

TIMM = "timm:"  # names of timm's networks begin with it
OWN = "own:"  # names of the user's modules in results begin with it


def check_name(arch: str) -> str:
    """Return the name of an architecture if it may exist. Only timm knows the names after `timm:`.

    Raises:
        UserError: `arch` is neither a key of `ARCHS` nor `timm:NAME`.
    """
    if arch not in ARCHS and not arch.startswith(TIMM):
        names = choose_from(arch, ARCHS, f"For timm networks, give {TIMM}NAME.")
        raise UserError(f"architecture '{arch}' is unknown. {names}")
    return arch


@dataclass(frozen=True)
class Family:
    """timm networks that are recognized from their tensors.

    Attributes:
        markers: names of a tensor that all networks of the family have: timm's, and the names in
            the files of the networks' authors.
        heads: possible names of the last layer, timm's first.
        networks: names in timm. Networks in one group have the same tensors but compute different
            features, so that only the user can tell which one a file contains.
    """

    markers: tuple[str, ...]
    heads: tuple[str, ...]
    networks: tuple[tuple[str, ...], ...]


def _names(pattern: str, *sizes: str) -> tuple[tuple[str, ...], ...]:
    return tuple((pattern.format(size),) for size in sizes)


_MOBILE = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3")
FAMILIES: dict[str, Family] = {
    "ConvNeXt": Family(
        ("stages.0.blocks.0.conv_dw.weight", "stages.0.0.dwconv.weight"),
        ("head.fc", "head"),
        (
            *_names("convnext_{}", "tiny", "small", "base", "large", "xlarge"),
            *_names("convnext_{}", "atto", "femto", "pico", "nano"),
            *_names("convnext_{}_cvst", "tiny", "small", "base", "large"),
            *_names("convnextv2_{}", "tiny", "base", "large", "huge"),
            *_names("convnextv2_{}", "atto", "femto", "pico", "nano"),
        ),
    ),
    "Swin transformer": Family(
        ("layers.0.blocks.0.attn.relative_position_bias_table",),
        ("head.fc", "head"),
        (
            *_names("swin_{}_patch4_window7_224", "tiny", "small", "base", "large"),
            *_names("swin_{}_patch4_window12_384", "base", "large"),
        ),
    ),
    "Swin transformer V2": Family(
        ("layers.0.blocks.0.attn.cpb_mlp.0.weight",),
        ("head.fc", "head"),
        tuple(
            (f"swinv2_{size}_window8_256", f"swinv2_{size}_window16_256")
            for size in ("tiny", "small", "base")
        ),
    ),
    "ViT": Family(
        ("blocks.0.attn.qkv.weight", "visual.transformer.resblocks.0.attn.in_proj_weight"),
        ("head",),
        (
            *_names("vit_{}_patch16_224", "tiny", "small", "base", "large"),
            *_names("vit_{}_patch16_384", "tiny", "small", "base", "large"),
            *_names("vit_{}_patch32_224", "small", "base", "large"),
            *_names("deit3_{}_patch16_224", "small", "base", "large"),
            *_names("vit_{}_patch14_dinov2", "small", "base", "large"),
            *_names("vit_{}_patch14_reg4_dinov2", "small", "base", "large"),
            *(
                (f"vit_base_{patch}_clip_224", f"vit_base_{patch}_clip_quickgelu_224")
                for patch in ("patch16", "patch32")
            ),
            ("vit_large_patch14_clip_224", "vit_large_patch14_clip_quickgelu_224"),
            *_names("vit_{}_cvst", "small", "base"),
            *_names("xcit_{}_12_p16_224", "nano", "tiny", "small", "medium", "large"),
            *_names("xcit_{}_24_p16_224", "tiny", "small", "medium", "large"),
        ),
    ),
    "ResNet of timm": Family(
        ("layer1.0.conv1.weight",),
        ("fc",),
        (
            *_names("resnet{}d", "18", "26", "34", "50", "101", "152", "200"),
            *_names("resnet{}c", "50"),
            *_names("seresnet{}", "18", "34", "50", "101", "152"),
            *_names("seresnext{}_32x4d", "50", "101"),
        ),
    ),
    "RegNet": Family(
        ("s1.b1.conv1.conv.weight",),
        ("head.fc",),
        (
            *_names("regnety_{}", "002", "004", "008", "016", "032", "040", "080", "160", "320"),
            *_names("regnetx_{}", "002", "004", "008", "016", "032", "040", "080", "160", "320"),
        ),
    ),
    "EfficientNet": Family(
        ("blocks.0.0.conv_dw.weight",),
        ("classifier",),
        tuple((name, f"tf_{name}") for name in (*_MOBILE, "mobilenetv3_large_100")),
    ),
    "MLP-Mixer": Family(
        ("blocks.0.mlp_tokens.fc1.weight",), ("head",), _names("mixer_{}_224", "s16", "b16", "l16")
    ),
}
