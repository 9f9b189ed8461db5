"""Training recipes and learning-rate schedules.

Each dataset has a default recipe. Command-line options override values of the recipe.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Default training length, optimizer and attack radius.

    Attributes:
        eps: default L2 radius of the training attack, for images in [0, 1].
        epochs: number of passes over the training images.
        batch_size: number of images per update, over all processes.
        lr: peak learning rate at `batch_size`; see `scaled_lr`.
        lr_schedule: key of `SCHEDULES`.
        weight_decay: factor of the L2 penalty on all parameters.
        warmup: length of the linear learning-rate warm-up, in epochs.
        momentum, nesterov: momentum of SGD, and whether to use Nesterov momentum.
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
    # Recipe of the published models (Salman et al. 2020, Appendix A). The learning rate drops every
    # 30 epochs.
    "paper": Recipe(3.0, 90, 512, 0.1, "step", 1e-4),
    # Optimizer and schedule of the `robustness` library for CIFAR-10. The learning rate drops every
    # 50 epochs. docs/differences.md describes where attack and augmentation differ.
    "cifar": Recipe(0.5, 150, 128, 0.1, "step", 5e-4),
    # Recipe for the embedded datasets. Training takes minutes on a CPU.
    "quick": Recipe(1.0, 5, 64, 0.03, "one-cycle", 5e-4, nesterov=True),
}


def scaled_lr(recipe: Recipe, batch_size: int) -> float:
    """Scale the learning rate of a recipe linearly with the batch size (Goyal et al. 2017)."""
    return recipe.lr * batch_size / recipe.batch_size


# Each schedule maps (update, total updates) to a factor of the peak learning rate.


def _constant(update: int, total: int) -> float:
    return 1.0


def _step(update: int, total: int) -> float:
    """Divide by 10 after each third of the run, as the paper does at epochs 30 and 60 of 90."""
    return 0.1 ** (3 * update // total)


def _cosine(update: int, total: int) -> float:
    """Follow half a cosine from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * update / total)) / 2


def _cyclic(update: int, total: int) -> float:
    """Rise and fall linearly, with the peak in the middle (Wong et al. 2020, arXiv 2001.03994).

    The factor is never 0.
    """
    half = (total + 1) / 2
    return 1 - abs(update + 1 - half) / half


def _one_cycle(update: int, total: int) -> float:
    """Rise linearly for a quarter of the run, then follow half a cosine to nearly 0."""
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
        warmup: number of updates at the start of the run. A linear warm-up over these updates
            multiplies the schedule.
    """
    rise = min(1.0, (update + 1) / warmup) if warmup else 1.0
    return peak * rise * SCHEDULES[schedule](update, total)
