"""Table of the published models. The rows are in `zoo.csv`, their papers in `zoo_sources.csv`.

This module does not import torch.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_backbones.archs import RESNETS, TIMM
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.input_statistics import PRESETS, ZOO, InputStatistics

SCHEME = "robust://"
PAPER = "salman2020"  # the source of models whose name ends with eps
_DRIVE = "https://drive.google.com/uc?id="


@dataclass(frozen=True)
class Source:
    """A publication with models.

    Attributes:
        key: first author and year, such as `liu2023`.
        title, venue, url: the paper, or the software.
        license: license of the weights.
        files: the place of each model's file begins with this text.
    """

    key: str
    title: str
    venue: str
    url: str
    license: str
    files: str


@dataclass(frozen=True)
class PublishedModel:
    """A published ImageNet classifier.

    Attributes:
        name: name without `robust://`, such as `resnet50_linf_eps4` or
            `swin_base_linf_eps4_liu2023`.
        arch: architecture; empty if this package cannot build the network.
        source: publication.
        constraint: norm of the training perturbations, `"l2"` or `"linf"`; None if the model was
            not trained with perturbations of a norm.
        eps: perturbation radius for images in [0, 1]. 0: standard training. None: see `constraint`.
        accuracy: clean ImageNet top-1 accuracy in percent; None if not published. For `salman2020`
            the paper's, on all validation images, else RobustBench's, on 5,000.
        robust_accuracy: accuracy under AutoAttack with L-infinity eps 4/255, in percent, of
            RobustBench; None if not published.
        corruption_accuracy: accuracy on ImageNet-C in percent, of RobustBench; None if not
            published.
        size_mb: file size in millions of bytes; None if unknown.
        statistics: input statistics.
        pretrained_on: datasets of the training in their order, joined by `+`, such as
            `"laion2b+imagenet"`.
        resize: length in pixels to which the short side of images is resized before the crop; None
            if they are not resized.
        size: height and width of the input in pixels.
        interpolation: interpolation of the resizing, `"bilinear"` or `"bicubic"`.
        place: `hf://` path or URL of the file.
        sha256: published digest of the file; None if unknown.
        twin: weights of a standard network of the same architecture; None if not known.
        note: further differences from the twin, and other remarks, as sentences; None if none are
            known.
        refused: reason why this package cannot use the model; None if it can.
        robustbench: name of the model in RobustBench; None if it has none.
    """

    name: str
    arch: str
    source: Source
    constraint: str | None
    eps: float | None
    accuracy: float | None
    robust_accuracy: float | None
    corruption_accuracy: float | None
    size_mb: float | None
    statistics: InputStatistics
    pretrained_on: str
    resize: int | None
    size: int
    interpolation: str
    place: str
    sha256: str | None
    twin: str | None
    note: str | None
    refused: str | None
    robustbench: str | None

    @property
    def file(self) -> str:
        """Name of the file, with `name` if the file has no name or open_clip's usual name."""
        if self.place.startswith(_DRIVE):
            return f"{self.name}.pt"
        file = self.place.split("/")[-1]
        return re.sub(r"open_clip_\w+", self.name, file)

    @property
    def facts(self) -> dict:
        """Metadata that is saved with the converted weights."""
        facts = {"name": self.name, "dataset": self.pretrained_on}
        if self.eps is None:
            return facts | {"method": "other"}  # neither standard nor adversarial training
        return facts | {"constraint": self.constraint, "eps": self.eps}

    @property
    def variant(self) -> str:
        """Publication and method, which the architecture does not tell; empty for `salman2020`."""
        words = re.sub(r"_(l2|linf)_eps[\d.]+", "", self.name).split("_")
        arch = re.split("[:_]", self.arch)
        return " ".join(word for word in words if word not in arch)

    @property
    def has_backbone(self) -> bool:
        """Whether the network can be the backbone of a detector."""
        # Patches of 14 pixels do not fit the strides of a feature pyramid.
        return self.arch in RESNETS or self.arch.startswith(TIMM) and "patch14" not in self.arch

    def require_usable(self) -> None:
        """Check that this package can use the model.

        Raises:
            UserError: it cannot.
        """
        if self.refused:
            raise UserError(
                f"{SCHEME}{self.name} is not supported: {self.refused}. Choose another model: "
                "robust-backbones zoo list"
            )


def _read(file: str) -> list[dict[str, str]]:
    with Path(__file__).with_name(file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _model(row: dict[str, str]) -> PublishedModel:
    fields: dict[str, Any] = {key: value or None for key, value in row.items()}
    for key in ("accuracy", "robust_accuracy", "corruption_accuracy", "size_mb"):
        fields[key] = float(row[key]) if row[key] else None
    for key in ("resize", "size"):
        fields[key] = int(row[key]) if row[key] else None
    source = SOURCES.get(row["name"].rsplit("_", 1)[-1], SOURCES[PAPER])
    norm = re.search(r"_(l2|linf)_eps([\d.]+)", row["name"])
    constraint, eps = (norm[1], float(norm[2])) if norm else (None, None)
    if eps is not None and constraint == "linf":
        eps /= 255  # names contain 255 * eps
    fields |= {"arch": row["arch"], "source": source, "constraint": constraint, "eps": eps}
    fields["pretrained_on"] = row["pretrained_on"] or "imagenet"
    fields["statistics"] = PRESETS[row["statistics"]].of(ZOO)
    return PublishedModel(place=source.files + (fields.pop("file") or ""), **fields)


SOURCES = {row["key"]: Source(**row) for row in _read("zoo_sources.csv")}
MODELS = {row["name"]: _model(row) for row in _read("zoo.csv")}


def _canonical(name: str) -> str:
    """Write a number as `4`, not as `4.0`."""
    return re.sub(r"(?<=_eps)\d+\.\d+", lambda number: f"{float(number[0]):g}", name)


# Other names of the models: in the names of the paper's files, and in RobustBench.
_ALIASES = {m.robustbench: m for m in MODELS.values() if m.robustbench} | {
    _canonical(m.file.removesuffix(".ckpt")): m for m in MODELS.values() if m.source.key == PAPER
}


def _without_revision(place: str) -> str:
    return re.sub("@[^/]+", "", place)


_PLACES = {_without_revision(m.place): m for m in MODELS.values() if m.place}
# A repository of open_clip has one model.
_PLACES |= {place.rsplit("/", 1)[0]: m for place, m in _PLACES.items() if "/open_clip_" in place}


def find_model(name: str) -> PublishedModel:
    """Find a published model by name, with or without `robust://`.

    `eps4.0` and `eps4` are equivalent. The name may also be the name of a file of the paper,
    without its suffix, or RobustBench's name.

    Args:
        name: name such as `resnet50_linf_eps4`.

    Raises:
        UserError: no model has this name; the message suggests similar ones.
    """
    plain = name.removeprefix(SCHEME)
    canonical = _canonical(plain)
    if model := MODELS.get(canonical) or _ALIASES.get(canonical):
        return model
    names = choose_from(canonical, MODELS, "List all names with: robust-backbones zoo list")
    raise UserError(f"no published model is named '{plain}'. {names}")


def known(source: str) -> PublishedModel | None:
    """Return the published model with this name, `hf://` path or URL, or None for other sources."""
    bare = _without_revision(source)
    if (model := _PLACES.get(bare)) and source in (bare, model.place):
        return model
    try:
        return find_model(source)
    except UserError:
        return None


def find_backbone(name: str) -> PublishedModel:
    """Find a published model whose network can be the backbone of a detector.

    Raises:
        UserError: the name is unknown, or the network cannot be a backbone.
    """
    model = find_model(name)
    model.require_usable()
    if not model.has_backbone:
        raise UserError(
            f"{SCHEME}{model.name} is a {model.arch}, which has no backbone for Detectron2. "
            "Choose a model with a backbone: robust-backbones zoo list --backbone"
        )
    return model


def list_models(
    arch: str | None = None, constraint: str | None = None, backbone: bool = False
) -> list[PublishedModel]:
    """List the published models with these properties.

    Args:
        arch: architecture such as `resnet50`, or else the beginning of names, such as `convnext`;
            None: all.
        constraint: norm of the training perturbations, `"l2"` or `"linf"`; None: all.
        backbone: whether the network must be usable as the backbone of a detector.

    Raises:
        UserError: no model has this architecture.
    """
    models = list(MODELS.values())
    if arch:
        exact = [m for m in models if m.arch and arch in (m.arch, m.arch.removeprefix("timm:"))]
        models = exact or [m for m in models if m.name.startswith(arch.removeprefix("timm:"))]
        if not models:
            archs = dict.fromkeys(m.arch for m in MODELS.values() if m.arch)
            raise UserError(f"architecture '{arch}' is unknown. {choose_from(arch, archs)}")
    return [
        m for m in models if constraint in (None, m.constraint) and (m.has_backbone or not backbone)
    ]
