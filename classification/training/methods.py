"""Training methods. Each method crafts adversarial images and computes a loss on these images.

`pgd`, `fast` and `trades` attack the model in eval mode, as the `robustness` library does. For the
update, the model is in train mode. `settings.METHOD_DEFAULTS` has the default attacks.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from classification.training.settings import AttackSettings, TrainSettings
from robust_backbones.attacks import CONSTRAINTS, eval_mode, pgd


@dataclass(frozen=True)
class Method:
    """Implementation of one training method.

    Attributes:
        craft: function `(model, x, y, attack, generator)` that returns the images `x_adv` for the
            first update on a batch. The images are known to be in [0, 1].
        loss: function `(model, x, x_adv, y, label_smoothing, beta)` that returns the loss and the
            logits of `x_adv`.
    """

    craft: Callable[[nn.Module, Tensor, Tensor, AttackSettings, torch.Generator], Tensor]
    loss: Callable[..., tuple[Tensor, Tensor]]


def _clean(
    model: nn.Module, x: Tensor, y: Tensor, attack: AttackSettings, generator: torch.Generator
) -> Tensor:
    return x


def _attacked(
    model: nn.Module, x: Tensor, y: Tensor, attack: AttackSettings, generator: torch.Generator
) -> Tensor:
    return pgd(model, x, y, **asdict(attack), generator=generator, check_range=False)


def _attacked_divergence(
    model: nn.Module, x: Tensor, y: Tensor, attack: AttackSettings, generator: torch.Generator
) -> Tensor:
    """Perform the inner maximization of TRADES: maximize the KL divergence from the clean output.

    The attack maximizes the cross entropy with the clean probabilities as labels. This is the KL
    divergence plus a constant.
    """
    with eval_mode(model), torch.no_grad():
        clean = softmax(model(x).float(), 1)
    return pgd(model, x, clean, **asdict(attack), generator=generator, check_range=False)


def _random_start(
    model: nn.Module, x: Tensor, y: Tensor, attack: AttackSettings, generator: torch.Generator
) -> Tensor:
    """Return the first images of Free training (Shafahi et al. 2019, arXiv 1904.12843).

    The authors start from the perturbation of the previous batch, which has other images. This
    function draws a random start for each batch, so that a run can resume at any batch.
    """
    if attack.random_start:
        x = CONSTRAINTS[attack.constraint].random_start(x, attack.eps, generator).clamp(0, 1)
    return x.detach().requires_grad_()


def replay(x_adv: Tensor, x: Tensor, attack: AttackSettings) -> Tensor:
    """Return the next images of Free training: one step along the gradient of the last update.

    The backward pass of the last update, in train mode, also computed this gradient. The step
    therefore needs no extra pass.

    Args:
        x_adv: images of the last update, with `.grad`.
        x: clean images `(N, 3, H, W)`, in [0, 1].
        attack: norm, radius and step size.
    """
    assert x_adv.grad is not None
    rule = CONSTRAINTS[attack.constraint]
    moved = rule.step(x_adv.detach(), x_adv.grad, attack.step_size)
    return rule.project(moved, x, attack.eps).clamp(0, 1).detach().requires_grad_()


def _classify(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, label_smoothing: float, beta: float
) -> tuple[Tensor, Tensor]:
    logits = model(x_adv)
    return cross_entropy(logits, y, label_smoothing=label_smoothing), logits


def _trades(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, label_smoothing: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Compute the TRADES loss: clean loss + beta * KL(clean || adversarial).

    This is eq. 5 of Zhang et al. 2019 (arXiv 1901.08573).
    """
    clean, logits = model(x), model(x_adv)
    # With probabilities as the target, the gradient is NaN if a probability underflows to 0.
    divergence = kl_div(
        log_softmax(logits.float(), 1),
        log_softmax(clean.float(), 1),
        reduction="batchmean",
        log_target=True,
    )
    loss = cross_entropy(clean, y, label_smoothing=label_smoothing) + beta * divergence
    return loss, logits


METHODS = {
    "standard": Method(_clean, _classify),
    "pgd": Method(_attacked, _classify),
    "fast": Method(_attacked, _classify),
    "free": Method(_random_start, _classify),
    "trades": Method(_attacked_divergence, _trades),
}


class Objective(nn.Module):
    """Module that computes the training loss of a classifier.

    As one module, the loss is a single forward pass for DistributedDataParallel, even if it calls
    the classifier twice.

    Args:
        model: classifier.
        settings: method, label smoothing and beta.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings):
        super().__init__()
        self.model = model
        self.loss = partial(
            METHODS[settings.method].loss,
            label_smoothing=settings.label_smoothing,
            beta=settings.beta,
        )

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the logits of `x_adv`, `(N, classes)`."""
        return self.loss(self.model, x, x_adv, y)
