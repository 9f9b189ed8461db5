"""Training methods, one row each: which images an update sees, and the loss on them.

The adversarial images of pgd, fast and trades come from the model in eval mode, as those of the
`robustness` library do; the update sees them in train mode.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from robust_backbones.attacks import CONSTRAINTS, eval_mode, pgd


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        craft: `(model, x, y, generator, **attack)` -> an iterator of image batches like x; each is
            trained on once. When the next one is asked for, `.grad` of the one before is there.
        attack: defaults of the attack; `step_size` in multiples of eps.
        loss: `(model, x, x_adv, y, smoothing, beta)` -> the loss and the logits of `x_adv`.
        updates: attack -> how many batches `craft` makes of one.
        schedule: key of `schedules.SCHEDULES` that the method's authors use; None: the recipe's.
        attacks: whether `craft` runs the model, which may then be a `folding.Twin` of it.
        guarded: whether it can collapse within an epoch (catastrophic overfitting), which is then
            looked for after each.
    """

    craft: Callable[..., Iterator[Tensor]]
    attack: dict
    loss: Callable[..., tuple[Tensor, Tensor]]
    updates: Callable[[dict], int] = lambda attack: 1
    schedule: str | None = None
    attacks: bool = False
    guarded: bool = False


def _clean(
    model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None, **attack: Any
) -> Iterator[Tensor]:
    yield x


def _attacked(
    model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None, **attack: Any
) -> Iterator[Tensor]:
    yield pgd(model, x, y, **attack, generator=generator)


def _replayed(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator | None,
    *,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float,
    random_start: bool,
    **unused: Any,
) -> Iterator[Tensor]:
    """Free training (Shafahi et al. 2019, arXiv 1904.12843): `steps` updates on the same images.

    The gradient that moves the images comes with the update, so that it costs nothing, and is one
    in train mode. The authors begin with the perturbation of the batch before, which belongs to
    other images; here it is drawn anew, so that no state crosses batches and a run resumes
    anywhere.
    """
    rule = CONSTRAINTS[constraint]
    x_adv = x
    if random_start and generator is not None:
        x_adv = rule.random_start(x, eps, generator).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        yield x_adv
        assert x_adv.grad is not None  # the update has been made
        x_adv = rule.project(rule.step(x_adv.detach(), x_adv.grad, step_size), x, eps).clamp(0, 1)


def _diverging(
    model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None, **attack: Any
) -> Iterator[Tensor]:
    """The inner maximisation of TRADES: away from the model's own prediction on the clean image.

    The cross entropy with the clean probabilities as labels is their KL divergence plus a constant.
    """
    with eval_mode(model), torch.no_grad():
        clean = softmax(model(x).float(), 1)
    yield pgd(model, x, clean, **attack, generator=generator)


def _classify(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, smoothing: float, beta: float
) -> tuple[Tensor, Tensor]:
    logits = model(x_adv)
    return cross_entropy(logits, y, label_smoothing=smoothing), logits


def _trades(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, smoothing: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Zhang et al. 2019 (arXiv 1901.08573), eq. 5: clean loss + beta * KL(clean || adversarial)."""
    clean, logits = model(x), model(x_adv)
    divergence = kl_div(log_softmax(logits, 1), softmax(clean, 1), reduction="batchmean")
    return cross_entropy(clean, y, label_smoothing=smoothing) + beta * divergence, logits


def _row(
    craft: Callable[..., Iterator[Tensor]],
    steps: int,
    step_size: float,
    random_start: bool,
    use_best: bool,
    **others: Any,
) -> Method:
    attack = dict(steps=steps, step_size=step_size, random_start=random_start, use_best=use_best)
    return Method(craft, attack, **{"loss": _classify} | others)


METHODS = {
    "standard": Method(_clean, {}, _classify),
    # Madry et al. 2018 (arXiv 1706.06083), as the paper's models were made.
    "pgd": _row(_attacked, 3, 2 / 3, False, True, attacks=True),
    # FGSM from a random start (Wong et al. 2020, arXiv 2001.03994).
    "fast": _row(_attacked, 1, 1.25, True, False, attacks=True, schedule="cyclic", guarded=True),
    "free": _row(_replayed, 4, 1.0, True, False, updates=lambda attack: attack["steps"]),
    # Ten steps of a quarter of eps; at the clean image itself the gradient is zero.
    "trades": _row(_diverging, 10, 0.25, True, False, attacks=True, loss=_trades),
}


class Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees one forward pass per update.

    Args:
        model: the classifier.
        method: key of `METHODS`.
        smoothing: of the labels, [0, 1).
        beta: weight of TRADES' second term.
    """

    def __init__(self, model: nn.Module, method: str, smoothing: float, beta: float):
        super().__init__()
        self.model = model
        self.loss = partial(METHODS[method].loss, smoothing=smoothing, beta=beta)

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and the logits of `x_adv`, `(N, classes)`."""
        return self.loss(self.model, x, x_adv, y)
