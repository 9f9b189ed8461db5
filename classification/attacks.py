"""Attacks: `(model, x, y) -> x_adv`. Bind the parameters with `functools.partial`.

PGD is that of Madry et al. 2018 (arXiv 1706.06083) with the conventions of the `robustness`
library: equal settings give equal images. One difference: the
library averages the losses of a batch and adds 1e-10 to the gradient's norm, so that images that
the model is very sure of, in large batches above all, take shorter L2 steps than asked for. Here
every step has its full length, and an image's attack does not depend on its batch.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robust_backbones.core.errors import UserError

# A loss below this is 0 in float32, so that nothing is known about the gradient's length.
FLOAT32_EPS = torch.finfo(torch.float32).eps
# What settings say about a PGD attack.
PARAMETERS = ("constraint", "eps", "steps", "step_size", "random_start", "use_best")


@dataclass(frozen=True)
class Constraint:
    """A norm ball, as the three operations that an attack needs. Images are `(N, C, H, W)`.

    Attributes:
        random_start: `(x, eps, generator)` -> a random point of the ball around x.
        step: `(x, gradient, step_size)` -> x after the steepest ascent step of that length; x
            where the gradient is zero or not finite.
        project: `(x, centre, eps)` -> the nearest point of the ball around `centre`.
    """

    random_start: Callable[[Tensor, float, torch.Generator], Tensor]
    step: Callable[[Tensor, Tensor, float], Tensor]
    project: Callable[[Tensor, Tensor, float], Tensor]


def _norms(x: Tensor) -> Tensor:
    """L2 norm of each image, `(N, 1, 1, 1)`."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def _l2_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    # Drawn on the generator's device, so that a CPU seed means the same points on a GPU.
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * noise / _norms(noise)  # on the sphere


def _l2_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    # Divided by its largest entry first, since the squares of a tiny gradient underflow to 0. The
    # quotient is NaN where there is no direction: 0/0, or with NaN or infinity in the gradient.
    direction = (gradient / gradient.abs().amax((1, 2, 3), keepdim=True)).nan_to_num(nan=0.0)
    return x + step_size * direction / _norms(direction).clamp(min=1)  # below 1 only where all 0


def _l2_project(x: Tensor, centre: Tensor, eps: float) -> Tensor:
    return centre + (x - centre).renorm(p=2, dim=0, maxnorm=eps)


def _linf_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * (2 * noise - 1)


def _linf_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    finite = gradient.isfinite().all(dim=3).all(dim=2).all(dim=1).view(-1, 1, 1, 1)
    return x + step_size * torch.where(finite, gradient.sign(), 0)


def _linf_project(x: Tensor, centre: Tensor, eps: float) -> Tensor:
    return centre + (x - centre).clamp(-eps, eps)


CONSTRAINTS = {
    "l2": Constraint(_l2_start, _l2_step, _l2_project),
    "linf": Constraint(_linf_start, _linf_step, _linf_project),
}


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float,
    random_start: bool = False,
    restarts: int = 1,
    targeted: bool = False,
    use_best: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent on the cross entropy (Madry et al. 2018, arXiv 1706.06083).

    The model runs in eval mode; afterwards every submodule's mode is what it was, and `.grad`,
    parameters and BatchNorm statistics are untouched.

    Args:
        model: `(N, 3, H, W)` in [0, 1] -> logits `(N, classes)`.
        x: images `(N, 3, H, W)`, float RGB in [0, 1].
        y: labels `(N,)`, int64: the true ones, or with `targeted` the wanted ones. Or
            probabilities `(N, classes)`.
        constraint: key of `CONSTRAINTS`.
        eps: radius of the ball in pixels of [0, 1]: L2 over a whole image, or L-infinity. 0: `x`.
        steps: gradient steps, at least 1.
        step_size: length of one step, in the unit of `eps`.
        random_start: begin at a random point of the ball instead of at `x`.
        restarts: tries, at least 1, each from its own random start; the best one per image counts.
        targeted: descend on the loss of `y`; "best" is then the lowest loss, otherwise the highest.
        use_best: per image the best iterate, the start included; else the last. The last one's
            loss costs a forward pass: `steps + 1` per try instead of `steps`. Comparing tries
            needs that loss as well.
        generator: where random starts come from; needed with `random_start` only.

    Returns:
        Images `(N, 3, H, W)` inside the ball around `x` and inside [0, 1], without gradient. An
        image whose gradient is zero or not finite does not move.

    Raises:
        UserError: a parameter is not as said above, x is no such batch, or the logits have no
            gradient with respect to x.
    """
    check(x, constraint, eps, steps, step_size, random_start, restarts, generator)
    x = x.detach()
    if eps == 0:
        return x
    rule = CONSTRAINTS[constraint]

    def move(point: Tensor, gradient: Tensor) -> Tensor:
        return rule.project(rule.step(point, gradient, step_size), x, eps).clamp(0, 1)

    climb = partial(_climb, model, y, steps, move, -1 if targeted else 1, use_best, restarts > 1)
    best, best_score = x, x.new_full((len(x),), -math.inf)
    with eval_mode(model):
        for _ in range(restarts):
            start = x
            if random_start and generator is not None:  # `check` has seen to that
                start = rule.random_start(x, eps, generator).clamp(0, 1)
            x_adv, score = climb(start)
            if score is None or restarts == 1:
                return x_adv
            # By loss. (The library keeps the tries that fool the model, but inverts its mask with
            # `~` on bytes, which is true for 0 and for 1 alike: its last try always wins.)
            best, best_score = _better(best, best_score, x_adv, score)
    return best


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    constraint: str,
    eps: float,
    step_size: float | None = None,
    random_start: bool = False,
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step of length `eps` from the clean image (Goodfellow et al. 2015, arXiv 1412.6572).

    With `random_start`, and for linf a `step_size` of 1.25 * eps, it is the adversary of "fast"
    training (Wong et al. 2020, arXiv 2001.03994). One forward and one backward pass.

    Args:
        step_size: length of the step, in the unit of `eps`; None: `eps`.

    The rest, what is returned and what is raised: as for `pgd`.
    """
    return pgd(
        model,
        x,
        y,
        constraint=constraint,
        eps=eps,
        steps=1,
        use_best=False,
        step_size=eps if step_size is None else step_size,
        random_start=random_start,
        targeted=targeted,
        generator=generator,
    )


def adversary(settings: dict, seed: int) -> Callable[[nn.Module, Tensor, Tensor], Tensor] | None:
    """`pgd` bound to the `PARAMETERS` among the settings; None where eps is 0.

    Args:
        seed: of its random starts.
    """
    if settings["eps"] == 0:
        return None
    bound = {name: settings[name] for name in PARAMETERS}
    return partial(pgd, **bound, generator=torch.Generator().manual_seed(seed))


def check(
    x: Tensor,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float,
    random_start: bool = False,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> None:
    """Refuse what no attack can work with; the arguments are those of `pgd`.

    Raises:
        UserError: one of them is not as `pgd` says, or x is no batch of images in [0, 1].
    """
    if constraint not in CONSTRAINTS:
        raise UserError(f"constraint '{constraint}' is unknown; one of: {', '.join(CONSTRAINTS)}.")
    if not 0 <= eps < math.inf:
        raise UserError(f"eps is {eps}; it must be a finite number of at least 0.")
    if steps < 1:
        raise UserError(f"steps is {steps}; it must be at least 1.")
    if not 0 <= step_size < math.inf:
        raise UserError(f"step_size is {step_size}; it must be a finite number of at least 0.")
    if restarts < 1:
        raise UserError(f"restarts is {restarts}; it must be at least 1, which is a single try.")
    if restarts > 1 and not random_start:
        raise UserError(
            f"restarts is {restarts}, but without random_start all tries are the same; pass "
            "random_start=True and a generator."
        )
    if random_start and generator is None:
        raise UserError("random_start needs a generator; pass generator=torch.Generator().")
    if x.dim() != 4:
        raise UserError(f"x has the shape {tuple(x.shape)}; images must be (N, C, H, W).")
    if not ((x >= 0) & (x <= 1)).all():  # so written, NaN fails too
        raise UserError(
            f"x spans [{x.min():g}, {x.max():g}]; images must lie in [0, 1]: scale them, and leave "
            "the normalisation to the model."
        )


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule's own mode again (some may be frozen in eval)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _climb(
    model: nn.Module,
    y: Tensor,
    steps: int,
    move: Callable[[Tensor, Tensor], Tensor],
    sign: int,
    use_best: bool,
    score_last: bool,
    x: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """One try from the start x: the best or the last iterate, and its score `(N,)` where known.

    A score is `sign` times an image's loss: what the attack raises. That of every iterate but the
    last comes with its gradient, without a forward pass of its own.
    """
    best, best_score = x, x.new_full((len(x),), -math.inf)
    for _ in range(steps):
        score, gradient = _score_and_gradient(model, x, y, sign)
        if use_best:
            best, best_score = _better(best, best_score, x, score)
        x = move(x, gradient)
    if not (use_best or score_last):
        return x, None
    with torch.no_grad():
        score = sign * cross_entropy(model(x), y, reduction="none")
    return _better(best, best_score, x, score) if use_best else (x, score)


def _score_and_gradient(model: nn.Module, x: Tensor, y: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Score of each image `(N,)`, and the gradient of each image's own score, shaped like x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = sign * cross_entropy(model(x), y, reduction="none")
        # The sum: a mean would make gradients smaller the larger the batch, down to underflow.
        total, gradient = (score * _weights(score, x)).sum(), None
        if total.requires_grad:
            # Of the input only: parameters' gradients are neither written nor computed.
            (gradient,) = torch.autograd.grad(total, [x], allow_unused=True)
    if gradient is None:
        raise UserError(
            "the model's logits have no gradient with respect to its images, so that no gradient "
            "attack can say anything about it; remove what is not differentiable."
        )
    return score.detach(), gradient


def _weights(score: Tensor, x: Tensor) -> Tensor | float:
    """Factors that lift the gradients of a sure model above float16's smallest number, 6e-8.

    The logits' gradient is as large as the probability of a mistake, `1 - exp(-loss)`. No step
    depends on the length of an image's gradient, so that it may be divided by that.
    """
    kind = x.device.type
    if not (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16):
        return 1.0
    return 1 / (-torch.expm1(-score.detach().abs())).clamp(min=FLOAT32_EPS)


def _better(
    best: Tensor, best_score: Tensor, x_adv: Tensor, score: Tensor
) -> tuple[Tensor, Tensor]:
    higher = score > best_score  # never where the score is NaN
    return (
        torch.where(higher.view(-1, 1, 1, 1), x_adv, best),
        torch.where(higher, score, best_score),
    )
