"""Training recipes and learning-rate schedules.

Each dataset has a default recipe. Command-line options override values of the recipe.
"""

import math
from dataclasses import asdict, dataclass, fields

from classification.training.settings import TrainSettings


@dataclass(frozen=True)
class Recipe:
    """Default training length, optimizer and attack radius.

    Attributes:
        eps: default radius of the training attack in the norm `constraint`, for images in [0, 1].
        epochs: number of passes over the training images.
        batch_size: number of images per update, over all processes.
        lr: peak learning rate at `batch_size`; see `scaled_lr`.
        lr_schedule: key of `SCHEDULES`.
        weight_decay, warmup, momentum, nesterov: as in `settings.TrainSettings`.
        optimizer, beta2, layer_decay, drop_path: likewise.
        label_smoothing, ema: likewise.
        constraint: default norm of the training attack.
        steps: gradient steps of `--method pgd`; None: the method's.
        step_size: length of one step of `--method pgd`, in multiples of eps; None: the method's.
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
    optimizer: str = "sgd"
    beta2: float = 0.999
    layer_decay: float = 1.0
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    constraint: str = "l2"
    steps: int | None = None
    step_size: float | None = None


RECIPES = {
    # Recipe of the published models (Salman et al. 2020, Appendix A). The learning rate drops every
    # 30 epochs.
    "paper": Recipe(3.0, 90, 512, 0.1, "step", 1e-4),
    # Optimizer and schedule of the `robustness` library for CIFAR-10. The learning rate drops every
    # 50 epochs. docs/results/differences.md describes where attack and augmentation differ.
    "cifar": Recipe(0.5, 150, 128, 0.1, "step", 5e-4),
    # Recipe for the bundled datasets. Training takes minutes on a CPU.
    "quick": Recipe(1.0, 5, 64, 0.03, "one-cycle", 5e-4, nesterov=True),
    # Recipe of Singh et al. 2023 (arXiv 2303.01870) for ConvNeXt-T and ViT-S: main.py and
    # run_train.sh of github.com/nmndeep/revisiting-at, commit d7166c0. The code does not scale the
    # learning rate, and does not state the number of GPUs, each with 80 images. 8 are assumed.
    # docs/guides/pretrain.md lists the parts that are not taken over.
    "singh2023": Recipe(
        4 / 255,
        300,
        640,
        1e-3,
        "cosine",
        0.05,
        warmup=20,
        optimizer="adamw",
        beta2=0.95,
        label_smoothing=0.1,
        ema=0.9999,
        constraint="linf",
        steps=2,
        step_size=2.0,
    ),
}

# Recipes for the transfer of full networks. Transfer chooses between `lr` and `lr / 10`.
TRANSFER_RECIPES = {
    # Settings that Salman et al. (2020) published as the best for all tasks.
    "paper": Recipe(0.0, 150, 64, 0.01, "step", 5e-4),
    # Fine-tuning of ConvNeXt-B at 224 pixels (TRAINING.md of github.com/facebookresearch/ConvNeXt,
    # commit 231af90): learning rate 5e-5. Its batch size of 512 images is for ImageNet.
    "convnext": Recipe(
        0.0, 30, 64, 5e-4, "cosine", 1e-8, optimizer="adamw", layer_decay=0.8, drop_path=0.2
    ),
}


def training_defaults(recipe: Recipe) -> dict:
    """Return the values of a recipe for fields of `TrainSettings`, except the learning rate."""
    names = {field.name for field in fields(TrainSettings)} - {"lr"}
    return {name: value for name, value in asdict(recipe).items() if name in names}


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
