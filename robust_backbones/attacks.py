"""Norm balls and PGD. An attack is a function `(model, x, y) -> x_adv`.

Bind an attack's parameters with `functools.partial`. `CONSTRAINTS` is used for detectors, too
(`detection/attack.py`).

PGD is the attack of Madry et al. 2018 (arXiv 1706.06083) with the conventions of the `robustness`
library: equal settings give equal images. There is one difference. The library averages the losses
of a batch and adds 1e-10 to the gradient's norm. This shortens the L2 steps of confidently
classified images, especially in large batches. In this module, every step has its full length, and
the attack on an image does not depend on the other images of the batch.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robust_backbones.core.eps import check_eps, default_step
from robust_backbones.core.errors import UserError

# Losses below this value round to 0 in float32, so the length of their gradient is unknown.
FLOAT32_EPS = torch.finfo(torch.float32).eps
IMAGE = (-3, -2, -1)  # dimensions of an image in `(C, H, W)` and in `(N, C, H, W)`


@dataclass(frozen=True)
class Constraint:
    """Norm ball with the operations of an attack, for an image or a batch of images.

    All functions accept an image `(C, H, W)` or a batch `(N, C, H, W)`.

    Attributes:
        random_start: function `(x, eps, generator)` that returns a random point of the ball with
            radius `eps` around `x`.
        step: function `(x, gradient, step_size)` that returns `x` after a steepest ascent step of
            length `step_size`. Images whose gradient is zero or not finite do not change.
        project: function `(x, center, eps)` that returns the point closest to `x` in the ball with
            radius `eps` around `center`.
        norm: function `(difference)` that returns the norm of each image, `()` or `(N,)`.
    """

    random_start: Callable[[Tensor, float, torch.Generator], Tensor]
    step: Callable[[Tensor, Tensor, float], Tensor]
    project: Callable[[Tensor, Tensor, float], Tensor]
    norm: Callable[[Tensor], Tensor]

    def move(
        self,
        x: Tensor,
        gradient: Tensor,
        center: Tensor,
        *,
        eps: float,
        step_size: float,
        largest: float = 1,
    ) -> Tensor:
        """Take a step, project onto the ball around `center`, and clip pixels to [0, largest]."""
        return self.project(self.step(x, gradient, step_size), center, eps).clamp(0, largest)


def _l2_norm(x: Tensor, keepdim: bool = False) -> Tensor:
    return torch.linalg.vector_norm(x, dim=IMAGE, keepdim=keepdim)


def _l2_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * noise / _l2_norm(noise, keepdim=True)  # a point on the sphere of radius eps


def _l2_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    # Divide by the largest entry first, because the squares of a tiny gradient underflow to 0. The
    # quotient is NaN for 0/0, and if the gradient contains NaN or infinity.
    direction = (gradient / gradient.abs().amax(IMAGE, keepdim=True)).nan_to_num(nan=0.0)
    # The norm of an image's direction is now at least 1, or 0 if all its entries are 0.
    return x + step_size * direction / _l2_norm(direction, keepdim=True).clamp(min=1)


def _l2_project(x: Tensor, center: Tensor, eps: float) -> Tensor:
    difference = x - center
    images = difference if x.dim() == 4 else difference[None]
    return center + images.renorm(p=2, dim=0, maxnorm=eps).reshape(x.shape)


def _linf_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * (2 * noise - 1)


def _linf_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    finite = gradient.isfinite()
    for dim in IMAGE:
        finite = finite.all(dim, keepdim=True)
    return x + step_size * torch.where(finite, gradient.sign(), 0)


def _linf_project(x: Tensor, center: Tensor, eps: float) -> Tensor:
    return center + (x - center).clamp(-eps, eps)


def _linf_norm(x: Tensor) -> Tensor:
    return x.abs().amax(IMAGE)


CONSTRAINTS = {
    "l2": Constraint(_l2_start, _l2_step, _l2_project, _l2_norm),
    "linf": Constraint(_linf_start, _linf_step, _linf_project, _linf_norm),
}


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float | None = None,
    random_start: bool = False,
    restarts: int = 1,
    targeted: bool = False,
    use_best: bool = True,
    generator: torch.Generator | None = None,
    check_range: bool = True,
) -> Tensor:
    """Attack images by projected gradient ascent on the cross entropy (Madry et al. 2018).

    The model runs in eval mode, and the mode of each submodule is restored afterwards. `.grad`,
    parameters and BatchNorm statistics do not change.

    Args:
        model: network from `(N, 3, H, W)` in [0, 1] to logits `(N, classes)`.
        x: images `(N, 3, H, W)`, float RGB in [0, 1].
        y: labels `(N,)`, int64, or class probabilities `(N, classes)`. They are the true labels, or
            the target labels if `targeted`.
        constraint: norm of the perturbation, a key of `CONSTRAINTS`.
        eps: radius of the ball for pixels in [0, 1], in the L2 norm over a whole image or the
            L-infinity norm. The result is `x` if eps is 0.
        steps: number of gradient steps, at least 1.
        step_size: length of one step, in the unit of `eps`; None: 2.5 * eps / steps.
        random_start: whether to start at a random point of the ball instead of at `x`.
        restarts: number of times that the attack runs, at least 1. Values above 1 need
            `random_start`. The best result of each image is returned.
        targeted: whether to decrease the loss of `y` instead of increasing it.
        use_best: whether to return the best iterate of each image, including the start, instead of
            the last iterate. The loss of the last iterate costs one more forward pass per restart.
            If `restarts` is above 1, this loss is always computed.
        generator: random number generator; needed only with `random_start`. The random numbers are
            drawn on its device. A generator on the device of x is much faster than one on the CPU.
        check_range: whether to check that x is in [0, 1]. The check waits for a GPU.

    Returns:
        Images `(N, 3, H, W)` inside the ball around `x` and inside [0, 1], without gradient. A step
        does not change images whose gradient is zero or not finite.

    Raises:
        UserError: a parameter is out of its range, x is not a batch of images in [0, 1], the
            logits have no gradient with respect to x, or torch.inference_mode is on.
    """
    check(x, constraint, eps, steps, step_size, random_start, restarts, generator, check_range)
    x = x.detach()
    if eps == 0:
        return x
    ball = CONSTRAINTS[constraint]
    step_size = default_step(eps, steps) if step_size is None else step_size
    move = partial(ball.move, center=x, eps=eps, step_size=step_size)
    climb = partial(_climb, model, y, steps, move, -1 if targeted else 1, use_best, restarts > 1)
    best, best_score = x, x.new_full((len(x),), -math.inf)
    with eval_mode(model):
        for _ in range(restarts):
            start = x
            if random_start and generator is not None:  # `check` has rejected None
                start = ball.random_start(x, eps, generator).clamp(0, 1)
            x_adv, score = climb(start)
            if score is None or restarts == 1:
                return x_adv
            # Compare the restarts by loss. The `robustness` library is meant to keep the restarts
            # that fool the model. Its mask is wrong, because it inverts bytes with `~`, so the
            # library always returns the last restart.
            best, best_score = better(best, best_score, x_adv, score)
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
    """Attack images with one gradient step, FGSM (Goodfellow et al. 2015, arXiv 1412.6572).

    By default, the step has length `eps` and starts at the clean image. With `random_start` and a
    `step_size` of 1.25 * eps for linf, this is the attack of "fast" adversarial training (Wong et
    al. 2020, arXiv 2001.03994). The attack costs one forward and one backward pass.

    Args:
        step_size: length of the step, in the unit of `eps`; None for a step of length `eps`.

    For the other arguments, the result and the errors, see `pgd`.
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


def check_parameters(constraint: str, eps: float, steps: int, step_size: float | None) -> None:
    """Reject parameters that are invalid for every attack. For the arguments, see `pgd`.

    Raises:
        UserError: the constraint is unknown, or another parameter is out of its range.
    """
    if constraint not in CONSTRAINTS:
        raise UserError(
            f"constraint '{constraint}' is unknown. Choose from {', '.join(CONSTRAINTS)}."
        )
    for name, length in {"eps": eps, "step_size": step_size}.items():
        if length is not None and not 0 <= length < math.inf:
            raise UserError(f"{name} is {length}. It must be a finite number of at least 0.")
    check_eps("eps", constraint, eps)
    if steps < 1:
        raise UserError(f"steps is {steps}; it must be at least 1.")


def check(
    x: Tensor,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float | None,
    random_start: bool = False,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    check_range: bool = True,
) -> None:
    """Reject invalid arguments of `pgd`. For the arguments, see `pgd`.

    Raises:
        UserError: a parameter is out of its range, x is not a batch of images in [0, 1], or
            torch.inference_mode is on.
    """
    require_gradients(x)
    check_parameters(constraint, eps, steps, step_size)
    if restarts < 1:
        raise UserError(f"restarts is {restarts}; it must be at least 1 (a single try).")
    if restarts > 1 and not random_start:
        raise UserError(
            f"restarts is {restarts}, but without random_start all tries are equal. Pass "
            "random_start=True and a generator."
        )
    if random_start and generator is None:
        raise UserError("random_start needs a generator. Pass generator=torch.Generator().")
    if x.dim() != 4:
        raise UserError(f"x has shape {tuple(x.shape)}; images must be (N, C, H, W).")
    if check_range and not ((x >= 0) & (x <= 1)).all():  # also false for NaN
        raise UserError(
            f"x spans [{x.min():g}, {x.max():g}]; images must be in [0, 1]. Scale them, and leave "
            "the normalization to the model."
        )


def require_gradients(*tensors: Tensor) -> None:
    """Reject torch.inference_mode, in which an attack cannot compute gradients.

    Unlike torch.no_grad, inference mode cannot be left by torch.enable_grad, and a tensor that was
    created in it never gets a gradient.

    Args:
        tensors: images of the attack.

    Raises:
        UserError: inference mode is on, or a tensor was created in it.
    """
    if not torch.is_inference_mode_enabled() and not any(t.is_inference() for t in tensors):
        return
    raise UserError(
        "an attack needs gradients, but torch.inference_mode is on or was on when the images were "
        "created. Use torch.no_grad instead. With Lightning, pass Trainer(inference_mode=False)."
    )


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode, and restore the mode of each submodule afterwards."""
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
    """Run the attack once from the start `x`.

    The score of an image is `sign` times its loss. The scores are computed with the gradients. Only
    the score of the last iterate needs another forward pass.

    Returns:
        The best or the last iterate of each image, `(N, C, H, W)`, and its score, `(N,)`. The score
        is None if neither `use_best` nor `score_last` requires it.
    """
    best, best_score = x, x.new_full((len(x),), -math.inf)
    for _ in range(steps):
        score, gradient = _score_and_gradient(model, x, y, sign)
        if use_best:
            best, best_score = better(best, best_score, x, score)
        x = move(x, gradient)
    if not (use_best or score_last):
        return x, None
    with torch.no_grad():
        score = sign * cross_entropy(model(x), y, reduction="none")
    return better(best, best_score, x, score) if use_best else (x, score)


def _score_and_gradient(model: nn.Module, x: Tensor, y: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Compute the score of each image, `(N,)`, and the gradient of each score, shaped like `x`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = sign * cross_entropy(model(x), y, reduction="none")
        # Sum the scores. A mean would make gradients smaller in larger batches, until they
        # underflow.
        total, gradient = (score * _weights(score, x)).sum(), None
        if total.requires_grad:
            # Differentiate with respect to the input only, not to the parameters.
            (gradient,) = torch.autograd.grad(total, [x], allow_unused=True)
    if gradient is None:
        raise UserError(
            "the model's logits have no gradient with respect to its images, so gradient attacks "
            "cannot evaluate it. Remove operations that are not differentiable."
        )
    return score.detach(), gradient


def _weights(score: Tensor, x: Tensor) -> Tensor | float:
    """Compute factors for the scores that prevent gradients from underflowing in float16.

    The gradient of the logits scales with the probability of an error, `1 - exp(-loss)`. This
    probability is tiny for confidently classified images, and float16 rounds numbers below 6e-8 to
    0. Dividing by the probability does not change the attack, because a step does not depend on the
    length of the gradient.

    Returns:
        Factors `(N,)` under float16 autocast, otherwise 1.
    """
    kind = x.device.type
    if not (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16):
        return 1.0
    return 1 / (-torch.expm1(-score.detach().abs())).clamp(min=FLOAT32_EPS)


def better(best: Tensor, best_score: Tensor, x_adv: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Return the version with the higher score of each image in a batch, and its score `(N,)`."""
    higher = score > best_score  # false where the score is NaN
    return (
        torch.where(higher.view(-1, 1, 1, 1), x_adv, best),
        torch.where(higher, score, best_score),
    )
