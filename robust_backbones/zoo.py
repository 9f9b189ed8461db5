"""What there is: architectures and published models, one row each. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """A torchvision network.

    Attributes:
        head: name of the last layer, whose number of classes is free.
        marker: a tensor that only this family has; how a network's family is recognised.
        feature_dim: length of the vector that the head is fed with.
    """

    head: str
    marker: str
    feature_dim: int


@dataclass(frozen=True)
class ResNetArch(Arch):
    """A ResNet in torchvision's form (stride in the 3x3 convolution).

    Attributes:
        blocks: residual blocks in `layer1` to `layer4`.
        bottleneck: 1x1, 3x3, 1x1 blocks instead of two 3x3.
        groups, width_per_group: of the 3x3 convolutions in `layer1`; torchvision's arguments.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    groups: int
    width_per_group: int

    @property
    def depth(self) -> int:
        """The number in the name, Detectron2's `DEPTH`."""
        return sum(self.blocks) * (3 if self.bottleneck else 2) + 2

    @property
    def res2_channels(self) -> int:
        """Channels of the output of `layer1`, Detectron2's `RES2_OUT_CHANNELS`."""
        return self.feature_dim // 8


def _resnet(blocks, bottleneck=True, groups=1, width_per_group=64) -> ResNetArch:
    features = 2048 if bottleneck else 512
    return ResNetArch("fc", "layer1.0.conv1.weight", features, blocks, bottleneck, groups,
                      width_per_group)  # fmt: skip


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
    "mnasnet1_0": Arch("classifier.1", "layers.0.weight", 1280),
    "mobilenet_v2": Arch("classifier.1", "features.1.conv.0.0.weight", 1280),
    "shufflenet_v2_x1_0": Arch("fc", "stage2.0.branch1.0.weight", 1024),
    "vgg16_bn": Arch("classifier.6", "features.40.weight", 4096),
}

# Those that can be a Detectron2 backbone.
RESNETS = tuple(name for name, arch in ARCHS.items() if isinstance(arch, ResNetArch))

# What every published model was trained with: RGB in [0, 1], normalised by these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
