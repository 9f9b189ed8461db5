"""What the trials of one transfer run share, and in what they differ."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from classification import metrics, models
from classification.datasets.specs import DATASETS
from classification.datasets.split import ImageSplit, held_out_mask
from classification.models import Classifier
from classification.transfer import protocols
from classification.transfer.probe import few_shot
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import StopSignals
from robust_backbones.zoo import IMAGENET_MEAN, IMAGENET_STD

IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # statistics that change nothing


@dataclass(frozen=True)
class Task:
    """A network, a data set and how the one is to learn the other.

    Attributes:
        found: the network's weights.
        train, test: all images of the splits that are used.
        settings: of the run, see `transfer_options`.
        data: what identifies the images, see `training.identity`.
        folder: of the run.
        device: of this process.
        workers: processes that read images.
        save_seconds: longest time between two checkpoints.
        signals: whether the run was asked to stop.
    """

    found: Checkpoint
    train: ImageSplit
    test: ImageSplit
    settings: dict
    data: dict
    folder: Path
    device: torch.device
    workers: int = 0
    save_seconds: float = 600.0
    signals: StopSignals = field(default_factory=StopSignals)

    @property
    def trials(self) -> range:
        return range(self.settings["trials"])

    @property
    def metric_name(self) -> str:
        """A key of `metrics.METRICS`."""
        return self.settings["metric"]

    @property
    def metric(self) -> Callable[[Tensor, Tensor, int], float]:
        """`(predictions, labels, classes)` -> percent; see `metrics`."""
        return metrics.METRICS[self.metric_name]

    @property
    def chooses(self) -> bool:
        """Whether anything is to be chosen; else the user has."""
        given = self.settings[protocols.CHOICES[self.settings["probe"]]]
        return given is None or isinstance(given, list) and len(given) > 1

    def seed(self, trial: int) -> int:
        return self.settings["seed"] + trial

    def images(self, trial: int) -> Tensor:
        """Numbers of the training images of a trial, sorted."""
        if not self.settings["shots"]:
            return torch.arange(len(self.train))
        return few_shot(self.train.labels, self.settings["shots"], self.seed(trial)).sort().values

    def parts(self, trial: int) -> tuple[Tensor, Tensor]:
        """Those of `images` to learn from while something is chosen, and those to choose on."""
        every = self.images(trial)
        mask = held_out_mask(self.train.labels[every], self.settings["held_out"], self.seed(trial))
        return every[~mask], every[mask]

    def judges(self, trial: int) -> tuple[ImageSplit, ImageSplit]:
        """What to learn from while something is chosen, and what to choose on."""
        if self.settings["selection"] == "test":
            return self.train.subset(self.images(trial)), self.test
        fit, judged = (self.train.subset(part) for part in self.parts(trial))
        return fit, dataclasses.replace(judged, split="val")

    def classifier(self, trial: int) -> Classifier:
        """The network with the trial's new last layer, on the device; fixed, if it is to be."""
        settings, statistics = self.settings, None
        if settings["normalisation"] == "target":
            statistics = target_statistics(settings["dataset"])
        model = models.for_task(self.found, self.train.classes, self.seed(trial), statistics)
        if settings["mode"] == "fixed-feature":
            model.freeze(statistics=settings["batchnorm"] == "frozen")
        return model.to(self.device).to(memory_format=torch.channels_last)

    def check(self) -> None:
        """Find out now what would fail hours later.

        Raises:
            UserError: a class without an image where one is needed; a network that the protocol
                cannot freeze.
        """
        settings = self.settings
        for source in (self.train, self.test):
            counts = torch.bincount(source.labels, minlength=source.classes)
            if (empty := counts == 0).any() and self.metric_name == "mean_per_class":
                name = source.class_names[int(empty.nonzero()[0])]
                raise UserError(
                    f"{source.name} {source.split} has no image of '{name}'; the "
                    "metric is the mean over all classes: add some."
                )
        validates = self.chooses and settings["selection"] == "validation"
        if validates and not len(self.parts(0)[0]):
            raise UserError(
                "choosing takes one training image of each class, and nothing is left to learn "
                "from; give more --shots, or --selection test, or what is to be chosen."
            )
        # The authors' code knows which layers to freeze by their ResNets' names.
        blocks = any(name.startswith("layer4.") for name in self.found.tensors)
        if settings["batchnorm"] == "adapting" and settings["mode"] == "fixed-feature":
            if not blocks:
                raise UserError(
                    f"--batchnorm adapting freezes {self.found.arch} as the paper's code does, "
                    "which can do it to ResNets only; choose --protocol clean."
                )

    def metadata(self, trial: int) -> dict:
        """What the weights' later users need to know; the format is in docs/formats.md."""
        settings, model = self.settings, self.classifier(trial)
        names = ("arch", "dataset", "mode", "protocol", "image_size")
        return {name: settings[name] for name in names} | {
            "classes": self.train.classes,
            "mean": model.normalize.mean.flatten().tolist(),
            "std": model.normalize.std.flatten().tolist(),
            "source_sha256": self.found.sha256,
            "source_metadata": self.found.metadata,
            "seed": self.seed(trial),
        }


def target_statistics(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`(mean, std)` that the paper's code gives a data set: its own, or 0 and 1.

    Of the twelve tasks CIFAR-10 and CIFAR-100 have some; those that we normalise with ImageNet's
    are left as they are there.
    """
    row = DATASETS[dataset]
    own = (row.mean, row.std)
    return IDENTITY if own == (IMAGENET_MEAN, IMAGENET_STD) else own


@dataclass
class Trial:
    """What one trial found.

    Attributes:
        seed: its own.
        chosen: what was chosen, or given: `{"penalty": 3.2}`, `{"lr": 0.01}`.
        candidates: what it was chosen among: `{"penalty", "value"}`, value in percent.
        predictions: `(N,)` of the test images, and the same under attack or None.
        more: what else there is to know, in plain JSON types.
        model: the network's state dict, on the CPU, if it is to be kept.
    """

    seed: int
    chosen: dict
    candidates: list[dict]
    predictions: Tensor
    adversarial: Tensor | None = None
    more: dict = field(default_factory=dict)
    model: dict | None = None
