"""Attacks: `(model, x, y) -> x_adv`. Bind the parameters with `functools.partial`."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robust_backbones.errors import UserError


@dataclass(frozen=True)
class Constraint:
    """A norm ball, as the three operations that an attack needs. Images are `(N, C, H, W)`.

    Attributes:
        random_start: `(x, eps, generator)` -> a random point of the ball around x.
        step: `(x, gradient, step_size)` -> x after the steepest ascent step of that length.
        project: `(x, centre, eps)` -> the nearest point of the ball around `centre`.
    """

    random_start: Callable[[Tensor, float, torch.Generator], Tensor]
    step: Callable[[Tensor, Tensor, float], Tensor]
    project: Callable[[Tensor, Tensor, float], Tensor]


def _norms(x: Tensor) -> Tensor:
    """L2 norm of each image, `(N, 1, 1, 1)`."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _l2_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    # Drawn on the generator's device, so that a CPU seed means the same points on a GPU.
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * noise / _norms(noise)  # on the sphere


def _l2_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    return x + step_size * gradient / (_norms(gradient) + 1e-10)


def _l2_project(x: Tensor, centre: Tensor, eps: float) -> Tensor:
    return centre + (x - centre).renorm(p=2, dim=0, maxnorm=eps)


def _linf_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * (2 * noise - 1)


def _linf_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    return x + step_size * gradient.sign()


def _linf_project(x: Tensor, centre: Tensor, eps: float) -> Tensor:
    return centre + (x - centre).clamp(-eps, eps)


CONSTRAINTS = {
    "l2": Constraint(_l2_start, _l2_step, _l2_project),
    "linf": Constraint(_linf_start, _linf_step, _linf_project),
}


def pgd(model: nn.Module, x: Tensor, y: Tensor, *, constraint: str, eps: float, steps: int,
        step_size: float, random_start: bool = False,
        generator: torch.Generator | None = None) -> Tensor:  # fmt: skip
    """Projected gradient ascent on the cross entropy; per image, the iterate of highest loss.

    The model runs in eval mode; afterwards every submodule's mode is what it was, and `.grad`,
    parameters and BatchNorm statistics are untouched.

    Args:
        model: `(N, 3, H, W)` in [0, 1] -> logits `(N, classes)`.
        x: images `(N, 3, H, W)`, float RGB in [0, 1].
        y: labels `(N,)`, int64.
        constraint: key of `CONSTRAINTS`.
        eps: radius of the ball in pixels of [0, 1]: L2 over a whole image, or L-infinity. 0: `x`.
        steps: gradient steps, at least 1. `steps + 1` forward passes in all.
        step_size: length of one step, in the unit of `eps`.
        random_start: begin at a random point of the ball instead of at `x`.
        generator: where the random start comes from; needed with `random_start` only.

    Returns:
        Images `(N, 3, H, W)` inside the ball around `x` and inside [0, 1], without gradient.

    Raises:
        UserError: a parameter is not as said above, or x leaves [0, 1].
    """
    _check(x, constraint, eps, steps, step_size, random_start, generator)
    x = x.detach()
    if eps == 0:
        return x
    rule = CONSTRAINTS[constraint]
    x_adv = rule.random_start(x, eps, generator).clamp(0, 1) if random_start else x
    best, best_loss = x_adv, x.new_full((len(x),), -math.inf)
    with _eval_mode(model):
        for _ in range(steps):
            losses, gradient = _losses_and_gradient(model, x_adv, y)
            best, best_loss = _better(best, best_loss, x_adv, losses)
            x_adv = rule.project(rule.step(x_adv, gradient, step_size), x, eps).clamp(0, 1)
        with torch.no_grad():
            losses = cross_entropy(model(x_adv), y, reduction="none")
    return _better(best, best_loss, x_adv, losses)[0]


def _check(x, constraint, eps, steps, step_size, random_start, generator) -> None:
    if constraint not in CONSTRAINTS:
        raise UserError(f"constraint '{constraint}' is unknown; one of: {', '.join(CONSTRAINTS)}.")
    if not 0 <= eps < math.inf:
        raise UserError(f"eps is {eps}; it must be a finite number of at least 0.")
    if steps < 1:
        raise UserError(f"steps is {steps}; it must be at least 1.")
    if not 0 <= step_size < math.inf:
        raise UserError(f"step_size is {step_size}; it must be a finite number of at least 0.")
    if random_start and generator is None:
        raise UserError("random_start needs a generator; pass generator=torch.Generator().")
    if not ((x >= 0) & (x <= 1)).all():  # so written, NaN fails too
        raise UserError(
            f"x spans [{x.min():g}, {x.max():g}]; images must lie in [0, 1]: scale them, and leave "
            "the normalisation to the model."
        )


@contextlib.contextmanager
def _eval_mode(model: nn.Module):
    """Eval mode inside; afterwards each submodule's own mode again (some may be frozen in eval)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _losses_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each image `(N,)` and the gradient of each image's own loss, shaped like x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        losses = cross_entropy(model(x), y, reduction="none")
        # Only the input's gradient: no parameter's .grad is written, nor its gradient computed.
        # The sum, so that the attack on an image does not depend on the size of its batch.
        (gradient,) = torch.autograd.grad(losses.sum(), [x])
    return losses.detach(), gradient


def _better(best, best_loss, x_adv, losses) -> tuple[Tensor, Tensor]:
    higher = losses > best_loss
    return (
        torch.where(higher.view(-1, 1, 1, 1), x_adv, best),
        torch.where(higher, losses, best_loss),
    )
