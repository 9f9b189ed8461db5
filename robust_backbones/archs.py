"""Table of the supported architectures.

This module does not import torch.
"""

from dataclasses import dataclass


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
