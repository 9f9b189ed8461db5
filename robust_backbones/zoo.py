"""Architectures and published models, as tables. Imports no torch.

python -m robust_backbones.zoo --help: list, show, fetch and verify them.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from robust_backbones.core.errors import UserError


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
# The same values for Detectron2, whose inputs are RGB in [0, 255].
PIXEL_MEAN = [round(255 * value, 3) for value in IMAGENET_MEAN]
PIXEL_STD = [round(255 * value, 3) for value in IMAGENET_STD]

# Where the models are published: a repository on the Hugging Face hub, at a fixed commit.
HUB_REPO = "madrylab/robust-imagenet-models"
HUB_REVISION = "1c68d6e185c2a503ec164cc8f736b1642b12d769"
LICENCE = "MIT"
SCHEME = "robust://"


@dataclass(frozen=True)
class Model:
    """A published ImageNet classifier.

    Attributes:
        arch: torchvision's name, or `wide_resnet50_4`.
        constraint: norm of the ball it was trained against, `"l2"` or `"linf"`.
        eps_text: eps as its file name has it. L2 whole numbers have no ".0", Linf ones do.
        accuracy: ImageNet top-1 on clean images, percent; None where it was not published.
        listed: False for a file that is on the hub but not in the paper's tables.
    """

    arch: str
    constraint: str
    eps_text: str
    accuracy: float | None
    listed: bool = True

    @property
    def name(self) -> str:
        """What users write after `robust://`, such as `resnet50_linf_eps4`."""
        return f"{self.arch}_{self.constraint}_eps{float(self.eps_text):g}"

    @property
    def eps(self) -> float:
        """Radius of the ball for pixels in [0, 1]; file names count Linf in 1/255."""
        return float(self.eps_text) / (255 if self.constraint == "linf" else 1)

    @property
    def file(self) -> str:
        """Its name on the hub."""
        arch = _FILE_ARCHS.get(self.arch, self.arch)
        return f"{arch}_{self.constraint}_eps{self.eps_text}.ckpt"

    @property
    def facts(self) -> dict:
        """What travels with its weights."""
        return {"name": self.name, "constraint": self.constraint, "eps": self.eps}

    @property
    def size_mb(self) -> float | None:
        """Size of the file in millions of bytes, where known."""
        return _SIZES_MB.get(self.arch)

    @property
    def sha256(self) -> str | None:
        """The file's published digest, where known."""
        return _digests().get(self.file)


# Files name some architectures more briefly than torchvision does.
_FILE_ARCHS = {
    "densenet161": "densenet",
    "mnasnet1_0": "mnasnet",
    "mobilenet_v2": "mobilenet",
    "shufflenet_v2_x1_0": "shufflenet",
}
_SIZES_MB = {"resnet18": 93.6, "resnet50": 205, "wide_resnet50_2": 551, "resnext50_32x4d": 201}

# ImageNet top-1, percent: (constraint, eps of the columns, a row per architecture).

_ACCURACIES: list[tuple[str, tuple[str, ...], dict[str, tuple[float, ...]]]] = [
    (
        "l2",
        ("0", "0.01", "0.03", "0.05", "0.1", "0.25", "0.5", "1", "3", "5"),
        {
            "resnet18": (69.79, 69.90, 69.24, 69.15, 68.77, 67.43, 65.49, 62.32, 53.12, 45.59),
            "resnet50": (75.80, 75.68, 75.76, 75.59, 74.78, 74.14, 73.16, 70.43, 62.83, 56.13),
            "wide_resnet50_2": (
                76.97,
                77.25,
                77.26,
                77.17,
                76.74,
                76.21,
                75.11,
                73.41,
                66.90,
                60.94,
            ),
            "wide_resnet50_4": (
                77.91,
                78.02,
                77.87,
                77.77,
                77.64,
                77.10,
                76.52,
                75.51,
                69.67,
                65.20,
            ),
        },
    ),
    (
        "l2",
        ("0", "3"),
        {
            "densenet161": (77.37, 66.98),
            "mnasnet1_0": (60.97, 41.83),
            "mobilenet_v2": (65.26, 50.40),
            "resnext50_32x4d": (77.38, 66.25),
            "shufflenet_v2_x1_0": (64.25, 43.32),
            "vgg16_bn": (73.66, 57.19),
        },
    ),
    (
        "linf",
        ("0.5", "1.0", "2.0", "4.0", "8.0"),
        {
            "resnet18": (66.13, 63.46, 59.63, 52.49, 42.11),
            "resnet50": (73.73, 72.05, 69.10, 63.86, 54.53),
            "wide_resnet50_2": (75.82, 74.65, 72.35, 68.41, 60.82),
        },
    ),
]

_UNLISTED = [Model("resnet50", "linf", "0", None, listed=False)]

MODELS = {
    model.name: model
    for model in [
        *(
            Model(arch, constraint, eps_text, accuracy)
            for constraint, columns, rows in _ACCURACIES
            for arch, accuracies in rows.items()
            for eps_text, accuracy in zip(columns, accuracies, strict=True)
        ),
        *_UNLISTED,
    ]
}


@cache
def _digests() -> dict[str, str]:
    """`{file name: SHA-256}` of the files whose published digest is known, as sha256sum writes."""
    lines = Path(__file__).with_name("zoo.sha256").read_text(encoding="utf-8").splitlines()
    return {file: digest for digest, file in (line.split() for line in lines)}


def find(name: str) -> Model:
    """The model of a name such as `resnet50_linf_eps4`, with or without `robust://`.

    `eps4.0` is the same as `eps4`, and the architecture may be spelled as in the file names.

    Raises:
        UserError: no such model; names the nearest ones.
    """
    plain = name.removeprefix(SCHEME)
    canonical = plain
    if parts := re.fullmatch(r"(\w+)_(l2|linf)_eps(\d+(?:\.\d+)?)", plain):
        arch, constraint, number = parts.groups()
        arch = {file: arch for arch, file in _FILE_ARCHS.items()}.get(arch, arch)
        canonical = f"{arch}_{constraint}_eps{float(number):g}"
    if canonical in MODELS:
        return MODELS[canonical]
    near = difflib.get_close_matches(canonical, MODELS, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise UserError(
        f"no published model is named '{plain}'{hint} "
        "All names: python -m robust_backbones.zoo list"
    )


def known(source: str) -> Model | None:
    """The model that a name or an `hf://` path stands for; None for anything else."""
    if source.startswith(f"hf://{HUB_REPO}"):
        file = source.rsplit("/", 1)[-1]
        return next((model for model in MODELS.values() if model.file == file), None)
    try:
        return find(source)
    except UserError:
        return None


def find_resnet(name: str) -> Model:
    """The published model with this name, if Detectron2 has a backbone for it.

    Raises:
        UserError: the name is unknown, or the model is not a ResNet.
    """
    model = find(name)
    if model.arch not in RESNETS:
        raise UserError(
            f"{SCHEME}{model.name} is a {model.arch}, which Detectron2 has no backbone for; "
            f"choose one of: {', '.join(RESNETS)}."
        )
    return model


def select(arch: str | None = None, constraint: str | None = None) -> list[Model]:
    """The models of one architecture and one constraint; None means all.

    Raises:
        UserError: no model has them.
    """
    archs = dict.fromkeys(model.arch for model in MODELS.values())
    arch = next((name for name, file in _FILE_ARCHS.items() if file == arch), arch)
    for option, value, allowed in (("arch", arch, archs), ("norm", constraint, ("l2", "linf"))):
        if value is not None and value not in allowed:
            raise UserError(f"--{option} '{value}' is unknown; one of: {', '.join(allowed)}.")
    return [
        m for m in MODELS.values() if arch in (None, m.arch) and constraint in (None, m.constraint)
    ]


if __name__ == "__main__":
    from robust_backbones.zoo_command import main

    main()
