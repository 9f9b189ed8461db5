"""Catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994): what shows it.

Training on images of one step can lose all robustness within an epoch while its own loss falls. PGD
on some training images after each epoch tells.
"""

import math

from robust_backbones.core.eps import STEP_FACTOR

IMAGES = 500  # of the training set that are attacked
# Wong et al. stop when the accuracy falls by 20 points. A weak model has not as many to lose.
COLLAPSE = 0.5  # of the best accuracy so far
STEPS = 10


def attack(settings: dict) -> dict:
    """The parameters of the attack: those of the training, but stronger."""
    stronger = {"steps": STEPS, "step_size": STEP_FACTOR * settings["eps"] / STEPS}
    return settings | stronger | {"random_start": True, "use_best": True}


def collapsed(accuracies: list[float], images: int) -> bool:
    """Whether the last accuracy is below half of the best before, and that is no chance.

    Args:
        accuracies: percent, one per epoch.
        images: how many each was measured on.
    """
    *before, last = accuracies
    best = max(before, default=0.0)
    error = math.sqrt(best * (100 - best) / images)
    return last < min(COLLAPSE * best, best - 3 * error)


def message(accuracies: list[float]) -> str:
    """What to tell the user of a collapse in the last epoch."""
    epoch = len(accuracies)
    return (
        f"catastrophic overfitting in epoch {epoch}: PGD accuracy on training images fell from "
        f"{accuracies[-2]:.1f} % to {accuracies[-1]:.1f} %. Training ends with the weights of "
        f"epoch {epoch - 1}. A smaller --step-size or --eps, fewer epochs, or --method pgd avoid "
        "it."
    )
