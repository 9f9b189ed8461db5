"""What the published models are made of: one row per architecture. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """A ResNet in torchvision's form (stride in the 3x3 convolution).

    Attributes:
        depth: 18, 34 choose basic blocks, 50 and more bottlenecks.
        width_per_group: inner width of a bottleneck in `layer1`; torchvision's argument.
        res2_channels: channels of the output of `layer1`, Detectron2's `RES2_OUT_CHANNELS`.
        feature_dim: length of the pooled feature vector.
    """

    depth: int
    width_per_group: int
    res2_channels: int
    feature_dim: int


ARCHS = {
    "resnet18": Arch(18, 64, 64, 512),
    "resnet50": Arch(50, 64, 256, 2048),
    "wide_resnet50_2": Arch(50, 128, 256, 2048),
    "wide_resnet50_4": Arch(50, 256, 256, 2048),  # not in torchvision: width 256
}

# What every published model was trained with: RGB in [0, 1], normalised by these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
