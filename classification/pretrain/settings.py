"""Settings of a pretraining run."""

from dataclasses import asdict, dataclass

from classification.training.settings import AttackSettings, TrainSettings


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that determines the numbers of a pretraining run, except the images.

    Attributes:
        arch: key of `zoo.ARCHS`.
        dataset: key of `datasets.DATASETS`.
        image_size: height and width of the images in pixels.
        limit, test_limit: number of training and test images; None: all.
        held_out: fraction of each class of the training images that replaces the test images.
        recipe: key of `recipes.RECIPES` that the defaults came from.
        train: training settings.
        evaluation: attack that measures the robust accuracy of the trained network.
        sync_bn: whether BatchNorm statistics are shared between processes.
        deterministic: whether GPUs give equal numbers in every run.
    """

    arch: str
    dataset: str
    image_size: int
    limit: int | None
    test_limit: int | None
    held_out: float
    recipe: str
    train: TrainSettings
    evaluation: AttackSettings
    sync_bn: bool
    deterministic: bool

    def to_json(self) -> dict:
        """Return all settings as one flat dictionary of plain types."""
        fields = asdict(self) | self.train.to_json()
        del fields["train"]
        return fields | {"evaluation": {"attack": "pgd", **asdict(self.evaluation)}}
