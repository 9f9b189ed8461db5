"""What a representation holds, as images: raise one of its units, or match all of it.

Engstrom et al. 2019, "Adversarial Robustness as a Prior for Learned Representations"
(arXiv 1906.00945): gradient steps of a fixed L2 length on the pixels, from noise or from an image,
and no other prior. The representation is what the last layer is fed with (`Classifier.features`).
With equal settings the images are those of their code on the `robustness` library, but for the
1e-10 that it adds to the gradient's norm (tests/unit/test_robustness_library.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust_backbones.attacks import CONSTRAINTS, better, check, eval_mode
from robust_backbones.core.errors import UserError

NOISE_STD = 1 / 20  # of the grey noise to start from, as in the authors' notebooks
KINDS = ("unit", "class")  # of the representation; of the logits
# Every way in which the networks of `zoo.ARCHS` cut off what is negative.
RECTIFIERS = (F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)

Score = Callable[[Tensor], Tensor]  # images (N, 3, H, W) -> (N,), to be raised
Progress = Callable[[int], None]  # called after each step with the number of images


def _silent(images: int) -> None:
    pass


def noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Images to start from: `(count, 3, size, size)` in [0, 1], grey with normal noise.

    Args:
        generator: on the CPU, so that a seed means the same images on any device.
    """
    # One by one: the first images are the same however many there are.
    drawn = [torch.randn(3, size, size, generator=generator) for _ in range(count)]
    return (0.5 + NOISE_STD * torch.stack(drawn)).clamp(0, 1)


def visualise(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    kind: str = "unit",
    eps: float,
    steps: int,
    step_size: float,
    use_best: bool = False,
    progress: Progress = _silent,
) -> Tensor:
    """Change each image until a unit of the representation, or the logit of a class, is high.

    The model runs in eval mode; afterwards every submodule's mode is what it was, and `.grad`,
    parameters and BatchNorm statistics are untouched.

    Args:
        model: `(N, 3, H, W)` in [0, 1] -> logits `(N, classes)`, and `features` -> `(N, D)`.
        x: images to start from, `(N, 3, H, W)`, float RGB in [0, 1].
        targets: `(N,)` int64, for each image the number of its unit or class.
        kind: one of `KINDS`. Of units, the gradient passes the last rectifier as if it were not
            there: a unit that is 0 everywhere would have none.
        eps: L2 radius of the ball around x, over a whole image, for pixels in [0, 1]; 1000 holds
            every image that is smaller than some 577 pixels: no constraint then.
        steps: at least 1.
        step_size: L2 length of one step.
        use_best: per image the best iterate, the start included; else the last, as the authors do.
        progress: called after each step.

    Returns:
        Images `(N, 3, H, W)` inside the ball and inside [0, 1], without gradient.

    Raises:
        UserError: a parameter is not as said above, or nothing of x reaches the output.
    """
    if kind not in KINDS:
        raise UserError(f"kind '{kind}' is unknown; one of: {', '.join(KINDS)}.")
    _check_targets(model, x, targets, kind)
    rows = torch.arange(len(x), device=x.device)
    targets = targets.to(x.device)
    how: dict[str, Any] = dict(
        eps=eps, steps=steps, step_size=step_size, use_best=use_best, progress=progress
    )
    if kind == "class":
        return _ascend(model, x, lambda z: model(z)[rows, targets], **how)
    straight = _straight_features(model, x)
    return _ascend(model, x, lambda z: straight(z)[rows, targets], **how)


def invert(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    use_best: bool = False,
    progress: Progress = _silent,
) -> Tensor:
    """Change each image until its representation is that of another one.

    What falls is `relative_distance`; its gradient passes the last rectifier as in `visualise`.

    Args:
        targets: representations to match, `(N, D)`: `features` of other images.

    The rest, what is returned and what is raised: as for `visualise`.
    """
    targets = targets.detach().to(x.device)
    if targets.dim() != 2 or len(targets) != len(x):
        raise UserError(
            f"targets have the shape {tuple(targets.shape)}; one representation is "
            f"needed for each of the {len(x)} images."
        )
    features = _straight_features(model, x)
    return _ascend(
        model,
        x,
        lambda z: -relative_distance(features(z), targets),
        eps=eps,
        steps=steps,
        step_size=step_size,
        use_best=use_best,
        progress=progress,
    )


def relative_distance(found: Tensor, targets: Tensor) -> Tensor:
    """`|found - target| / |target|` in L2, of each row: `(N, ...)` twice -> `(N,)`."""
    difference, length = (found - targets).flatten(1), targets.flatten(1)
    return difference.norm(dim=1) / length.norm(dim=1)


def correlation(found: Tensor, targets: Tensor) -> Tensor:
    """Pearson's, over all values of each row: `(N, ...)` twice -> `(N,)`; NaN where one is flat."""
    a, b = (z.flatten(1).double() for z in (found, targets))
    a, b = (z - z.mean(1, keepdim=True) for z in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).to(found.dtype)


def features(model: Any, x: Tensor) -> Tensor:
    """Representations `(N, D)` of x in eval mode, without gradient; the model stays as it was."""
    with eval_mode(model), torch.no_grad():
        return model.features(x)


def _check_targets(model: Any, x: Tensor, targets: Tensor, kind: str) -> None:
    if targets.shape != x.shape[:1]:
        raise UserError(
            f"targets have the shape {tuple(targets.shape)}; one number is needed for "
            f"each of the {len(x)} images."
        )
    with eval_mode(model), torch.no_grad():
        outputs = model(x[:1]) if kind == "class" else model.features(x[:1])
    known = outputs.shape[1]
    if len(wrong := targets[(targets < 0) | (targets >= known)]):
        raise UserError(
            f"{kind} {int(wrong[0])} is unknown; the network's are numbered 0 to {known - 1}."
        )


def _ascend(
    model: nn.Module,
    x: Tensor,
    score: Score,
    *,
    eps: float,
    steps: int,
    step_size: float,
    use_best: bool,
    progress: Progress,
) -> Tensor:
    """Steepest L2 ascent of each image's own score, in the ball around x and in [0, 1]."""
    check(x, "l2", eps, steps, step_size)
    rule, centre = CONSTRAINTS["l2"], x.detach()
    x, best, highest = centre, centre, centre.new_full((len(centre),), -torch.inf)
    with eval_mode(model):
        for _ in range(steps):
            value, gradient = _value_and_gradient(score, x)
            if use_best:
                best, highest = better(best, highest, x, value)
            x = rule.project(rule.step(x, gradient, step_size), centre, eps).clamp(0, 1)
            progress(len(x))
        if not use_best:
            return x
        with torch.no_grad():
            return better(best, highest, x, score(x))[0]


def _value_and_gradient(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = score(x)
        if not value.requires_grad:
            raise UserError(
                "the network's output has no gradient with respect to its images; "
                "remove what is not differentiable."
            )
        # Of the input only: parameters' gradients are neither written nor computed.
        (gradient,) = torch.autograd.grad(value.sum(), [x])
    return value.detach(), gradient


def _straight_features(model: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    """`model.features`, with a gradient that passes the last rectifier before the last layer."""
    with eval_mode(model), torch.no_grad(), _Rectifiers() as found:
        model.features(x[:1])

    def straight(z: Tensor) -> Tensor:
        with _Rectifiers(straight=found.calls):
            return model.features(z)

    return straight


class _Rectifiers(TorchFunctionMode):
    """Counts the calls of `RECTIFIERS` inside a `with` block; one of them lets gradients through.

    By calls, since networks call one nn.ReLU in several places, and some a function.

    Args:
        straight: the number of that call, from 1 on; None for none.
    """

    def __init__(self, straight: int | None = None):
        super().__init__()
        self.straight, self.calls = straight, 0

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in RECTIFIERS:
            return function(*args, **kwargs)
        self.calls += 1
        if self.calls != self.straight:
            return function(*args, **kwargs)
        x, *rest = args
        y = function(x.detach().clone(), *rest, **kwargs)  # a copy: it may work in place
        return x + (y - x.detach())  # exactly y: where it differs from x, it is a constant
