"""Detect catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994).

Training on one-step attacks can lose all robustness within an epoch while the training loss falls.
PGD on some training images after each epoch detects this.
"""

import math

IMAGES = 500  # number of training images to attack
# Wong et al. stop when the accuracy falls by 20 points. This limit is relative, because a
# weak model may have less than 20 % accuracy.
COLLAPSE = 0.5  # fraction of the best accuracy so far
STEPS = 10  # steps of the PGD attack


def collapsed(accuracies: list[float], images: int) -> bool:
    """Return whether the last accuracy is significantly below half of the best before it.

    Args:
        accuracies: PGD accuracy after each epoch, in percent.
        images: number of attacked images per epoch.
    """
    *before, last = accuracies
    best = max(before, default=0.0)
    error = math.sqrt(best * (100 - best) / images)
    return last < min(COLLAPSE * best, best - 3 * error)


def message(accuracies: list[float]) -> str:
    """Return the message about catastrophic overfitting in the last epoch.

    Args:
        accuracies: PGD accuracy after each epoch, in percent.
    """
    epoch = len(accuracies)
    return (
        f"catastrophic overfitting in epoch {epoch}: PGD accuracy on training images fell from "
        f"{accuracies[-2]:.1f} % to {accuracies[-1]:.1f} %. Training ends with the weights of "
        f"epoch {epoch - 1}. Use a smaller --step-size or --eps, fewer epochs, or --method pgd."
    )
