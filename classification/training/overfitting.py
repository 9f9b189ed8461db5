"""Detection of catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994).

Training on one-step attacks can lose all robustness within an epoch while the training loss falls.
PGD on some training images after each epoch shows it.
"""

import math

IMAGES = 500  # number of training images that are attacked
# Wong et al. stop when the accuracy falls by 20 points. A weak model may not have 20 points.
COLLAPSE = 0.5  # share of the best accuracy so far
STEPS = 10  # steps of the attack


def collapsed(accuracies: list[float], images: int) -> bool:
    """Tell whether the last accuracy is significantly below half of the best one before.

    Args:
        accuracies: accuracy of each epoch, percent.
        images: number of images behind each accuracy.
    """
    *before, last = accuracies
    best = max(before, default=0.0)
    error = math.sqrt(best * (100 - best) / images)
    return last < min(COLLAPSE * best, best - 3 * error)


def message(accuracies: list[float]) -> str:
    """Describe a collapse in the last epoch to the user.

    Args:
        accuracies: accuracy of each epoch, percent.
    """
    epoch = len(accuracies)
    return (
        f"catastrophic overfitting in epoch {epoch}: PGD accuracy on training images fell from "
        f"{accuracies[-2]:.1f} % to {accuracies[-1]:.1f} %. Training ends with the weights of "
        f"epoch {epoch - 1}. Use a smaller --step-size or --eps, fewer epochs, or --method pgd."
    )
