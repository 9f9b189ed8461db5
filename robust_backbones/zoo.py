"""Table of the published models.

This module does not import torch.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from robust_backbones.archs import RESNETS
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.input_statistics import IMAGENET, ZOO, InputStatistics

# Repository of the published models on the Hugging Face Hub, and the commit to download.
HUB_REPO = "madrylab/robust-imagenet-models"
HUB_REVISION = "1c68d6e185c2a503ec164cc8f736b1642b12d769"
LICENSE = "MIT"
SCHEME = "robust://"


@dataclass(frozen=True)
class Model:
    """A published ImageNet classifier.

    Attributes:
        arch: torchvision name, or `wide_resnet50_4`.
        constraint: norm of the training perturbations, `"l2"` or `"linf"`.
        eps_text: eps as written in the file name, such as `3` (L2) or `4.0` (L-infinity, 4/255).
        accuracy: clean ImageNet top-1 accuracy in percent; None if not published.
        listed: whether the paper's tables contain the model.
        statistics: input statistics.
    """

    arch: str
    constraint: str
    eps_text: str
    accuracy: float | None
    listed: bool = True
    statistics: InputStatistics = IMAGENET.of(ZOO)

    @property
    def name(self) -> str:
        """Canonical name without `robust://`, such as `resnet50_linf_eps4`."""
        return f"{self.arch}_{self.constraint}_eps{float(self.eps_text):g}"

    @property
    def eps(self) -> float:
        """Perturbation radius for images in [0, 1]. File names contain 255 * eps for L-infinity."""
        return float(self.eps_text) / (255 if self.constraint == "linf" else 1)

    @property
    def file(self) -> str:
        """File name on the Hub."""
        arch = _FILE_ARCHS.get(self.arch, self.arch)
        return f"{arch}_{self.constraint}_eps{self.eps_text}.ckpt"

    @property
    def facts(self) -> dict:
        """Metadata that is saved with the converted weights."""
        return {"name": self.name, "constraint": self.constraint, "eps": self.eps}

    @property
    def size_mb(self) -> float | None:
        """File size in millions of bytes; None if unknown."""
        return _SIZES_MB.get(self.arch)

    @property
    def sha256(self) -> str | None:
        """Published digest of the file; None if unknown."""
        return _digests().get(self.file)


# Architectures with a shorter name in the published files.
_FILE_ARCHS = {
    "densenet161": "densenet",
    "mnasnet1_0": "mnasnet",
    "mobilenet_v2": "mobilenet",
    "shufflenet_v2_x1_0": "shufflenet",
}
_SIZES_MB = {"resnet18": 93.6, "resnet50": 205, "wide_resnet50_2": 551, "resnext50_32x4d": 201}

# Clean ImageNet top-1 accuracy in percent. Each table has one column per eps and one row per
# architecture.
_L2_EPS = ("0", "0.01", "0.03", "0.05", "0.1", "0.25", "0.5", "1", "3", "5")
_L2 = {
    "resnet18": (69.79, 69.90, 69.24, 69.15, 68.77, 67.43, 65.49, 62.32, 53.12, 45.59),
    "resnet50": (75.80, 75.68, 75.76, 75.59, 74.78, 74.14, 73.16, 70.43, 62.83, 56.13),
    "wide_resnet50_2": (76.97, 77.25, 77.26, 77.17, 76.74, 76.21, 75.11, 73.41, 66.90, 60.94),
    "wide_resnet50_4": (77.91, 78.02, 77.87, 77.77, 77.64, 77.10, 76.52, 75.51, 69.67, 65.20),
}
_L2_FEW_EPS = ("0", "3")
_L2_FEW = {
    "densenet161": (77.37, 66.98),
    "mnasnet1_0": (60.97, 41.83),
    "mobilenet_v2": (65.26, 50.40),
    "resnext50_32x4d": (77.38, 66.25),
    "shufflenet_v2_x1_0": (64.25, 43.32),
    "vgg16_bn": (73.66, 57.19),
}
_LINF_EPS = ("0.5", "1.0", "2.0", "4.0", "8.0")
_LINF = {
    "resnet18": (66.13, 63.46, 59.63, 52.49, 42.11),
    "resnet50": (73.73, 72.05, 69.10, 63.86, 54.53),
    "wide_resnet50_2": (75.82, 74.65, 72.35, 68.41, 60.82),
}
_TABLES = (("l2", _L2_EPS, _L2), ("l2", _L2_FEW_EPS, _L2_FEW), ("linf", _LINF_EPS, _LINF))
_UNLISTED = (Model("resnet50", "linf", "0", None, listed=False),)

MODELS = {
    model.name: model
    for model in [
        *(
            Model(arch, constraint, eps_text, accuracy)
            for constraint, columns, rows in _TABLES
            for arch, accuracies in rows.items()
            for eps_text, accuracy in zip(columns, accuracies, strict=True)
        ),
        *_UNLISTED,
    ]
}


@cache
def _digests() -> dict[str, str]:
    """Read the published digests `{file name: SHA-256}` from a file in sha256sum format."""
    lines = Path(__file__).with_name("zoo.sha256").read_text(encoding="utf-8").splitlines()
    return {file: digest for digest, file in (line.split() for line in lines)}


def find(name: str) -> Model:
    """Find a published model by name, with or without `robust://`.

    `eps4.0` and `eps4` are equivalent. The architecture may be spelled as in the file names.

    Args:
        name: name such as `resnet50_linf_eps4`.

    Raises:
        UserError: no model has this name; the message suggests similar ones.
    """
    plain = name.removeprefix(SCHEME)
    canonical = plain
    if parts := re.fullmatch(r"(\w+)_(l2|linf)_eps(\d+(?:\.\d+)?)", plain):
        arch, constraint, number = parts.groups()
        canonical = f"{_full_arch(arch)}_{constraint}_eps{float(number):g}"
    if canonical in MODELS:
        return MODELS[canonical]
    names = choose_from(canonical, MODELS, "List all names with: robust-backbones zoo list")
    raise UserError(f"no published model is named '{plain}'. {names}")


def _full_arch(name: str) -> str:
    """Return the torchvision name of an architecture that is spelled as in the file names."""
    return next((arch for arch, short in _FILE_ARCHS.items() if short == name), name)


def known(source: str) -> Model | None:
    """Return the published model with this name or `hf://` path, or None for other sources."""
    if source.startswith(f"hf://{HUB_REPO}"):
        file = source.rsplit("/", 1)[-1]
        return next((model for model in MODELS.values() if model.file == file), None)
    try:
        return find(source)
    except UserError:
        return None


def find_resnet(name: str) -> Model:
    """Find a published model for which Detectron2 has a backbone.

    Raises:
        UserError: the name is unknown, or the model is not a ResNet.
    """
    model = find(name)
    if model.arch not in RESNETS:
        raise UserError(
            f"{SCHEME}{model.name} is a {model.arch}. Detectron2 has no backbone for it. Choose a "
            f"model of {', '.join(RESNETS)}."
        )
    return model


def select(arch: str | None = None, constraint: str | None = None) -> list[Model]:
    """Return the published models with this architecture and constraint. None matches all models.

    Raises:
        UserError: no model has this architecture.
    """
    archs = dict.fromkeys(model.arch for model in MODELS.values())
    arch = _full_arch(arch) if arch else None
    if arch not in (None, *archs):
        raise UserError(f"--arch {arch}: unknown architecture. {choose_from(str(arch), archs)}")
    return [
        m for m in MODELS.values() if arch in (None, m.arch) and constraint in (None, m.constraint)
    ]
