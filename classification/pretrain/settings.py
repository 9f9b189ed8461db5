"""Settings of a pretraining run."""

from dataclasses import asdict, dataclass

from classification.training.settings import AttackSettings, TrainSettings
from robust_backbones.core.input_statistics import InputStatistics


@dataclass(frozen=True)
class PretrainSettings:
    """All settings that affect the numbers of a pretraining run.

    Attributes:
        arch: architecture, as for `build_network`.
        dataset: key of `datasets.DATASETS`.
        image_size: height and width of the images in pixels.
        image_range: values that become black and white in images with more than 8 bits per channel;
            None: such images are an error.
        statistics: input statistics of the dataset.
        limit, test_limit: largest number of training and test images; None: all.
        held_out: fraction of the training images of each class, in [0, 1), that replaces the test
            images.
        recipe: key of `recipes.RECIPES` with the defaults of the run.
        train: training settings.
        evaluation: attack that measures the robust accuracy after training.
        sync_bn: whether BatchNorm statistics are shared between processes.
        deterministic: whether to use deterministic algorithms only, which are slower on GPUs.
    """

    arch: str
    dataset: str
    image_size: int
    image_range: list[float] | None
    statistics: InputStatistics
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
        fields["orientation"] = "applied"
        return fields | {
            "evaluation": {"attack": "pgd", **asdict(self.evaluation)},
            "statistics": self.statistics.to_json(),
        }
