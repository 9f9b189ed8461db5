"""Settings of a transfer run."""

from dataclasses import asdict, dataclass

from classification.training.settings import AttackSettings, TrainSettings
from classification.transfer.protocols import Protocol


@dataclass(frozen=True)
class SourceNetwork:
    """The pretrained network, as its weight file describes it.

    Attributes:
        arch: key of `zoo.ARCHS`.
        image_size: height and width of its training images in pixels; None: unknown.
        sha256: digest of the weight file.
    """

    arch: str
    image_size: int | None
    sha256: str


@dataclass(frozen=True)
class SgdSettings:
    """Training of the last layer or the full network by SGD.

    Attributes:
        train: training settings. Each trial replaces the seed, each candidate the learning rate.
        lrs: candidate learning rates, descending.
        eval_every: epochs between two evaluations of the selection images.
        prune_margin: percentage points that a learning rate may be below the best one before its
            training stops; None: every training runs to its end.
        evaluation: attack on the test images; None: clean images only.
    """

    train: TrainSettings
    lrs: tuple[float, ...]
    eval_every: int
    prune_margin: float | None
    evaluation: AttackSettings | None

    def to_json(self) -> dict:
        """Plain types, the training settings next to the others."""
        fields = self.train.to_json()
        return fields | {
            "adversarial": fields.pop("eps"),
            "lr": list(self.lrs),
            "eval_every": self.eval_every,
            "prune_margin": self.prune_margin,
            "evaluation": self.evaluation and {"attack": "pgd", **asdict(self.evaluation)},
        }


@dataclass(frozen=True)
class TransferSettings:
    """Everything that determines the numbers of a transfer run, except the images.

    Attributes:
        network: pretrained network.
        dataset: key of `datasets.DATASETS`.
        metric: key of `metrics.METRICS`.
        mode: one of `protocols.MODES`.
        protocol: name of the protocol, see `protocols.name_of`.
        parts: parts of the protocol.
        image_size: height and width of the images in pixels.
        downscale: length of the shorter side to which images are first reduced, in pixels; None:
            no reduction.
        decode: JPEG decoder, `exact` or `fast`.
        limit, test_limit: number of training and test images; None: all.
        shots: number of training images of each class; None: all.
        held_out: fraction of each class of the training images to select on; 0: select on the test
            images.
        trials: number of runs with different seeds.
        seed: seed of the first trial.
        precision: key of `training.settings.PRECISIONS`.
        deterministic: whether GPUs give equal numbers in every run.
        save_classifier: whether the network of each trial is saved.
        penalty: penalty of the logistic probe; None: selected automatically.
        neighbors: number of neighbors of the k-NN probe; None: selected automatically.
        sgd: settings of the training by SGD; None for the other probes.
    """

    network: SourceNetwork
    dataset: str
    metric: str
    mode: str
    protocol: str
    parts: Protocol
    image_size: int
    downscale: int | None
    decode: str
    limit: int | None
    test_limit: int | None
    shots: int | None
    held_out: float
    trials: int
    seed: int
    precision: str
    deterministic: bool
    save_classifier: bool
    penalty: float | None = None
    neighbors: int | None = None
    sgd: SgdSettings | None = None

    @property
    def chooses(self) -> bool:
        """Whether there is a hyperparameter to select. Otherwise the user gave its value."""
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
        del fields["sgd"]
        weights = {"weights_sha256": network["sha256"], "arch": network["arch"]}
        return own[parts["probe"]] | weights | fields | parts
