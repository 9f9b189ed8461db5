"""Training recipes, one row each. A data set names its own; each option may be overruled."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn.

    Attributes:
        eps: radius of the training attack where none is asked for, L2 (whole image, [0, 1]).
        epochs: passes over the training images.
        batch_size: images per update, all processes together.
        lr: highest learning rate, for that batch size; see `scaled_lr`.
        schedule: key of `schedules.SCHEDULES`.
        warmup: epochs over which the rate rises.
        weight_decay: L2 penalty on all parameters, a factor.
    """

    eps: float
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    weight_decay: float
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False


RECIPES = {
    # Salman et al. 2020, Appendix A: the published models. 30 + 30 + 30 epochs.
    "paper": Recipe(3.0, 90, 512, 0.1, "step", 1e-4),
    # The `robustness` library's optimizer and schedule for CIFAR-10: 50 + 50 + 50 epochs. Attack
    # and augmentation differ from the library's: docs/differences.md.
    "cifar": Recipe(0.5, 150, 128, 0.1, "step", 5e-4),
    # Minutes on a CPU, for the embedded data.
    "quick": Recipe(1.0, 5, 64, 0.03, "one-cycle", 5e-4, nesterov=True),
}


def scaled_lr(recipe: Recipe, batch_size: int) -> float:
    """The recipe's rate times `batch_size / recipe.batch_size` (Goyal et al. 2017, 1706.02677)."""
    return recipe.lr * batch_size / recipe.batch_size
