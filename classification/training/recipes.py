"""Training recipes and learning-rate schedules. A dataset names its recipe; options override it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Training length and optimizer of one recipe.

    Attributes:
        eps: default L2 radius of the training attack, for images in [0, 1].
        epochs: passes over the training images.
        batch_size: images per update, over all processes.
        lr: peak learning rate at that batch size; see `scaled_lr`.
        lr_schedule: key of `SCHEDULES`.
        weight_decay: factor of the L2 penalty on all parameters.
        warmup: epochs of linear learning-rate warm-up.
        momentum, nesterov: parameters of SGD.
    """

    eps: float
    epochs: int
    batch_size: int
    lr: float
    lr_schedule: str
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
    # Minutes on a CPU, for the embedded datasets.
    "quick": Recipe(1.0, 5, 64, 0.03, "one-cycle", 5e-4, nesterov=True),
}


def scaled_lr(recipe: Recipe, batch_size: int) -> float:
    """The recipe's learning rate times `batch_size / recipe.batch_size` (Goyal et al. 2017)."""
    return recipe.lr * batch_size / recipe.batch_size


# Schedules: (update, total updates) -> factor of the peak learning rate.


def _constant(update: int, total: int) -> float:
    return 1.0


def _step(update: int, total: int) -> float:
    """Divide by 10 after each third: the paper's drops at epochs 30 and 60 of 90."""
    return 0.1 ** (3 * update // total)


def _cosine(update: int, total: int) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * update / total)) / 2


def _cyclic(update: int, total: int) -> float:
    """One triangle with its peak in the middle (Wong et al. 2020, arXiv 2001.03994); never 0."""
    half = (total + 1) / 2
    return 1 - abs(update + 1 - half) / half


def _one_cycle(update: int, total: int) -> float:
    """A linear rise over a quarter of the run, then half a cosine to nearly 0."""
    rise = max(1, total // 4)
    if update < rise:
        return (update + 1) / rise
    return (1 + math.cos(math.pi * (update + 1 - rise) / (total + 1 - rise))) / 2


SCHEDULES = {
    "step": _step,
    "cosine": _cosine,
    "cyclic": _cyclic,
    "one-cycle": _one_cycle,
    "constant": _constant,
}


def learning_rate(update: int, total: int, peak: float, schedule: str, warmup: int = 0) -> float:
    """Compute the learning rate of one update.

    Args:
        update: index of the update, from 0 to total - 1.
        total: number of updates of the whole run.
        peak: peak learning rate.
        schedule: key of `SCHEDULES`.
        warmup: number of first updates over which a linear warm-up multiplies the schedule.
    """
    rise = min(1.0, (update + 1) / warmup) if warmup else 1.0
    return peak * rise * SCHEDULES[schedule](update, total)
