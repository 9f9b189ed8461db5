"""Network, data and settings of a transfer run, and functions that its trials share."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from classification import calibration, metrics
from classification.calibration import Scores, score
from classification.datasets.loader import check_batch_size
from classification.datasets.split import ImageSplit, held_out_mask
from classification.models import Classifier, Pretrained
from classification.transfer import protocols
from classification.transfer.probe import draw_fraction, few_shot
from classification.transfer.settings import TransferSettings
from robust_backbones import corruptions, timm_networks
from robust_backbones.archs import RESNETS
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import ASSUMED
from robust_backbones.core.signals import StopSignals


@dataclass(frozen=True)
class Task:
    """Network, data and settings of one transfer run.

    Attributes:
        network: pretrained network.
        train, test: training and test images.
        settings: settings of the run.
        data: identity of the images, see `trainer.identity`.
        shifts: further test images, with the names of the conditions as splits.
        shift_data: identity of `shifts`.
        folder: output folder of the run.
        device: device of this process.
        workers: number of processes that read images.
        save_seconds: longest time between two checkpoints, in seconds.
        signals: stop signals (SIGTERM, Ctrl-C) that this process received.
    """

    network: Pretrained
    train: ImageSplit
    test: ImageSplit
    settings: TransferSettings
    data: dict
    folder: Path
    device: torch.device
    workers: int = 0
    save_seconds: float = 600.0
    signals: StopSignals = field(default_factory=StopSignals)
    shifts: tuple[ImageSplit, ...] = ()
    shift_data: dict = field(default_factory=dict)

    @property
    def recorded(self) -> dict:
        """All settings and the fingerprints of the images, in plain JSON types."""
        prints = {split: part["fingerprint"] for split, part in self.data.items()}
        conditions = self.settings.conditions.to_json()
        if self.settings.conditions.corruptions:
            conditions["package"] = f"{corruptions.PACKAGE} {corruptions.package_version()}"
        if self.shifts:
            conditions["also_test"] = {k: v["fingerprint"] for k, v in self.shift_data.items()}
        found = self.settings.to_json() | {"data": prints}
        return found | ({"conditions": conditions} if conditions else {})

    @property
    def trials(self) -> range:
        """Indices of the trials."""
        return range(self.settings.trials)

    @property
    def metric(self) -> Callable[[Tensor, Tensor, int], float]:
        """Function `(predictions, labels, classes) -> accuracy in percent`; see `metrics`."""
        return metrics.METRICS[self.settings.metric]

    @property
    def keeps_networks(self) -> bool:
        """Whether the network of each trial is needed after the trial."""
        return self.settings.save_classifier or self.settings.conditions.requested

    @property
    def selects_on_test(self) -> bool:
        """Whether hyperparameters are selected on the test images."""
        return self.settings.parts.selection == "test"

    def seed(self, trial: int) -> int:
        """Return the seed of a trial."""
        return self.settings.seed + trial

    def images(self, trial: int) -> Tensor:
        """Return the sorted indices of a trial's training images."""
        labels, settings, seed = self.train.labels, self.settings, self.seed(trial)
        if settings.shots:
            return few_shot(labels, settings.shots, seed).sort().values
        if settings.fraction:
            return draw_fraction(labels, settings.fraction, seed).sort().values
        return torch.arange(len(self.train))

    @property
    def images_per_class(self) -> float:
        """Mean number of training images of a class. It is the same for all trials."""
        return len(self.images(0)) / len(self.train.labels.unique())

    def validation_split(self, trial: int) -> tuple[Tensor, Tensor]:
        """Split the images of a trial into training and validation indices.

        The validation images select hyperparameters and epochs.
        """
        every = self.images(trial)
        mask = held_out_mask(self.train.labels[every], self.settings.held_out, self.seed(trial))
        return every[~mask], every[mask]

    def selection_sources(self, trial: int) -> tuple[ImageSplit, ImageSplit]:
        """Return images to train the candidates on, and images to select the best candidate on."""
        if self.selects_on_test:
            return self.train.subset(self.images(trial)), self.test
        fit, chooses = (self.train.subset(part) for part in self.validation_split(trial))
        return fit, dataclasses.replace(chooses, split="val")

    def classifier(self, trial: int) -> Classifier:
        """Build the network with the trial's new last layer. Fixed-feature freezes the rest."""
        settings = self.settings
        model = self.network.model.for_task(
            self.train.classes, self.seed(trial), settings.statistics
        )
        if settings.mode == "fixed-feature":
            model.freeze(statistics=settings.parts.batchnorm == "frozen")
        return model.to(self.device).to(memory_format=torch.channels_last)

    def check(self) -> None:
        """Check the data and the network for errors that would otherwise stop the run later.

        Raises:
            UserError: a class has too few images, or the protocol does not support the network.
        """
        settings = self.settings
        timm_networks.check_size(settings.network.arch, settings.image_size)
        for source in (self.train, self.test):
            counts = torch.bincount(source.labels, minlength=source.classes)
            if (empty := counts == 0).any() and settings.metric == "mean_per_class":
                name = source.class_names[int(empty.nonzero()[0])]
                raise UserError(
                    f"{source.name} {source.split} has no image of class '{name}', which the "
                    "metric mean_per_class needs. Add images, or use --metric top1."
                )
        if (settings.conditions.autoattack or 0) > len(self.test):
            raise UserError(
                f"--autoattack {settings.conditions.autoattack}: there are only {len(self.test)} "
                f"test images. Choose at most {len(self.test)}."
            )
        if settings.shots:
            counts = torch.bincount(self.train.labels, minlength=self.train.classes).tolist()
            names = self.train.class_names
            few = sorted((n, names[k]) for k, n in enumerate(counts) if 0 < n < settings.shots)
            if few:
                shown = ", ".join(f"'{name}' has {n}" for n, name in few[:3])
                more = f", and {len(few) - 3} more classes have too few" if few[3:] else ""
                raise UserError(
                    f"--shots {settings.shots}: some classes have fewer training images: "
                    f"{shown}{more}. Choose at most {few[0][0]}."
                )
        validates = settings.chooses and not self.selects_on_test
        images = len(self.validation_split(0)[0] if validates else self.images(0))
        if not images:
            shots = "one image of each class"
            for name in ("shots", "fraction"):
                if number := getattr(settings, name):
                    shots = f"--{name} {number:g}"
            raise UserError(
                f"{shots}: the selection of hyperparameters holds out one image of each class, "
                "which leaves none to train on. Use more images, --selection test, or a fixed "
                f"--{protocols.CHOICES[settings.parts.probe]}."
            )
        if settings.sgd:
            check_batch_size(settings.sgd.train.batch_size, images)
        # The authors' code freezes layers by their names in ResNets.
        adapting = settings.parts.batchnorm == "adapting" and settings.mode == "fixed-feature"
        if adapting and settings.network.arch not in RESNETS:
            raise UserError(
                f"--batchnorm adapting supports ResNets only, not {settings.network.arch}. Choose "
                "--protocol clean."
            )

    def metadata(self, trial: int) -> dict:
        """Return the metadata to save with a trial's weights; see docs/reference/formats.md."""
        settings = self.settings
        # Training the full network adapts it to assumed statistics.
        assumed = settings.statistics.source == ASSUMED and settings.mode == "fixed-feature"
        return ({"statistics": ASSUMED} if assumed else {}) | {
            "arch": settings.network.arch,
            "dataset": settings.dataset,
            "mode": settings.mode,
            "protocol": settings.protocol,
            "image_size": settings.image_size,
            "classes": self.train.classes,
            "class_names": list(self.train.class_names),
            "mean": list(settings.statistics.mean),
            "std": list(settings.statistics.std),
            "source_sha256": settings.network.sha256,
            "source_metadata": self.network.file.metadata,
            "seed": self.seed(trial),
        }


@dataclass(frozen=True)
class Calibration:
    """Calibration scores of one trial.

    Attributes:
        plain: scores of the network.
        temperature: temperature chosen on validation images; None: the protocol has none.
        scaled: scores with the temperature; None: no temperature.
    """

    plain: Scores
    temperature: float | None
    scaled: Scores | None

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, temperature: float | None) -> "Calibration":
        """Score logits `(N, K)`."""
        scaled = score(logits, labels, temperature) if temperature else None
        return cls(score(logits, labels), temperature, scaled)


def summarize_calibration(trials: Sequence[Calibration]) -> dict:
    """Summarize the calibration of all trials on the same images, for result.json."""
    scaled = [trial.scaled for trial in trials if trial.scaled]
    temperatures = [trial.temperature for trial in trials]
    complete = scaled if len(scaled) == len(trials) else None
    return calibration.summarize([trial.plain for trial in trials], temperatures, complete)


@dataclass
class Trial:
    """Outcome of one trial.

    Attributes:
        seed: seed of the trial.
        chosen: selected or given hyperparameter, such as `{"penalty": 3.2}` or `{"lr": 0.01}`.
        candidates: evaluated hyperparameters, such as `{"penalty": 3.2, "value": 91.5}`. "value" is
            the selection accuracy in percent.
        predictions: predicted classes of the test images, `(N,)` int64.
        calibration: calibration on the test images; None: the probe has no logits.
        more: further entries for the result, in plain JSON types.
        model: state dict of the network on the CPU; None if it is not needed any more.
    """

    seed: int
    chosen: dict
    candidates: list[dict]
    predictions: Tensor
    calibration: Calibration | None = None
    more: dict = field(default_factory=dict)
    model: dict | None = None
