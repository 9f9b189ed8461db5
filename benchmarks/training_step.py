"""The training step of `classification.pretrain`, with its reports."""

from torch import Tensor

from classification.training.learner import Learner


def train_batch(learner: Learner, x: Tensor, y: Tensor, seed: int = 0, lr: float = 0.01) -> None:
    """Train on one batch, and report when pretraining would."""
    learner.step(x, y, [lr] * learner.settings.updates_per_batch, seed)
    if learner.due:
        learner.report()
