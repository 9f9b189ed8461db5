"""Settings of a transfer run."""

from dataclasses import asdict, dataclass, field
from typing import Any

from classification.training.settings import TrainSettings
from classification.transfer.protocols import Protocol
from robust_backbones.core.input_statistics import InputStatistics


@dataclass(frozen=True)
class SourceNetwork:
    """Pretrained network, as described by its weight file.

    Attributes:
        arch: architecture, as for `build_network`, or `own:` and a class of the user.
        image_size: height and width of its training images in pixels; None: unknown.
        statistics: its input statistics.
        sha256: SHA-256 of the weight file.
        source_input: input that its source states, as in `known_classes.source_input`.
    """

    arch: str
    image_size: int | None
    statistics: InputStatistics
    sha256: str
    source_input: dict = field(default_factory=dict)


@dataclass(frozen=True)
class SgdSettings:
    """Settings for training the last layer or the full network by gradient descent.

    Attributes:
        train: training settings. Each trial replaces the seed, and each candidate replaces the
            learning rate.
        lrs: candidate learning rates, descending.
        eval_every: number of epochs between two evaluations on the selection images.
        prune_margin: percentage points by which a candidate may be below the best candidate before
            its training stops; None: no training stops early.
    """

    train: TrainSettings
    lrs: tuple[float, ...]
    eval_every: int
    prune_margin: float | None

    def to_json(self) -> dict:
        """Return all settings as one flat dictionary, including the training settings."""
        fields = self.train.to_json()
        return fields | {
            "adversarial": fields.pop("eps"),
            "lr": list(self.lrs),
            "eval_every": self.eval_every,
            "prune_margin": self.prune_margin,
        }


@dataclass(frozen=True)
class ConditionSettings:
    """Conditions under which the networks are tested, in addition to the clean test images.

    Attributes:
        attacks: constraint and radius of each attack, such as `("linf", 4 / 255)`.
        steps, restarts: gradient steps and random starts of PGD.
        attack_batch_size: images per batch of an attack. The random starts depend on it.
        autoattack: number of test images for AutoAttack at each radius; None: no AutoAttack.
        corruptions: kinds of corruption, from `corruptions.KINDS`.
        also_test: name and path of each further folder of test images.
    """

    attacks: tuple[tuple[str, float], ...] = ()
    steps: int = 20
    restarts: int = 1
    attack_batch_size: int = 100
    autoattack: int | None = None
    corruptions: tuple[str, ...] = ()
    also_test: tuple[tuple[str, str], ...] = ()

    @property
    def requested(self) -> bool:
        """Whether there is a condition."""
        return bool(self.attacks or self.corruptions or self.also_test)

    def to_json(self) -> dict:
        """Return the settings in plain JSON types, without the folders, which may move."""
        found: dict[str, Any] = {}
        if self.attacks:
            found |= {
                "attacks": [list(each) for each in self.attacks],
                "steps": self.steps,
                "restarts": self.restarts,
                "attack_batch_size": self.attack_batch_size,
                "autoattack": self.autoattack,
            }
        if self.corruptions:
            found["corruptions"] = list(self.corruptions)
        return found


@dataclass(frozen=True)
class TransferSettings:
    """Everything that determines the numbers of a transfer run, except the images.

    Attributes:
        network: pretrained network.
        statistics: input statistics that the run uses, by `parts.normalization`.
        dataset: target dataset, a key of `datasets.specs.DATASETS`.
        metric: accuracy to report and to select by, a key of `metrics.METRICS`.
        mode: part of the network to train, one of `protocols.MODES`.
        protocol: name of the protocol, see `protocols.name_of`.
        parts: parts of the protocol.
        image_size: height and width of the images in pixels.
        downscale: length of the shorter side to which images are first reduced, in pixels; None: no
            reduction.
        image_range: values that become black and white in images with more than 8 bits per channel;
            None: such images are an error.
        decode: JPEG decoder, `exact` or `fast`.
        limit, test_limit: number of training and test images to use; None: all images.
        shots: number of training images per class; None: all images.
        fraction: fraction of the training images of each class, in (0, 1); None: all images.
        held_out: fraction of the training images of each class to select on; 0: select on the test
            images.
        trials: number of runs with different seeds.
        seed: seed of the first trial.
        precision: precision of the network, a key of `core.precision.PRECISIONS`.
        deterministic: whether repeated runs on a GPU give identical numbers.
        save_classifier: whether to save the network of each trial.
        penalty: penalty of the logistic probe; None: selected automatically.
        neighbors: number of neighbors of the k-NN probe; None: selected automatically.
        sgd: settings for SGD; None for the other probes.
        conditions: further tests of the networks.
    """

    network: SourceNetwork
    statistics: InputStatistics
    dataset: str
    metric: str
    mode: str
    protocol: str
    parts: Protocol
    image_size: int
    downscale: int | None
    image_range: list[float] | None
    decode: str
    limit: int | None
    test_limit: int | None
    shots: int | None
    fraction: float | None
    held_out: float
    trials: int
    seed: int
    precision: str
    deterministic: bool
    save_classifier: bool
    penalty: float | None = None
    neighbors: int | None = None
    sgd: SgdSettings | None = None
    conditions: ConditionSettings = ConditionSettings()

    @property
    def chooses(self) -> bool:
        """Whether the run selects a hyperparameter. Otherwise the user gave its value."""
        if self.sgd:
            return len(self.sgd.lrs) > 1
        return (self.penalty if self.parts.probe == "logistic" else self.neighbors) is None

    def to_json(self) -> dict:
        """Return all settings as one flat dictionary of plain types."""
        fields = asdict(self)
        own = {
            "logistic": {"penalty": fields.pop("penalty")},
            "knn": {"neighbors": fields.pop("neighbors")},
            "sgd": self.sgd.to_json() if self.sgd else {},
        }
        network, parts = fields.pop("network"), fields.pop("parts")
        del fields["sgd"], fields["statistics"], fields["conditions"]
        weights = {
            "weights_sha256": network["sha256"],
            "arch": network["arch"],
            "trained_image_size": network["image_size"],
            "source_input": network["source_input"],
            "statistics": self.statistics.to_json(),
        }
        return own[parts["probe"]] | weights | fields | parts
