"""Optimize images: maximize a unit or class, or match a representation.

The method comes from Engstrom et al. 2019, "Adversarial Robustness as a Prior for Learned
Representations" (arXiv 1906.00945). It takes gradient steps of a fixed L2 length on the pixels,
starting from noise or from an image. It uses no other prior. The representation is the input of
the last layer (`Classifier.features`). With the same settings, the authors' code for the
`robustness` library gives the same images, except that the library adds 1e-10 to the norm of the
gradient (tests/unit/test_robustness_library.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust_backbones.attacks import CONSTRAINTS, better, check, eval_mode
from robust_backbones.core.errors import UserError

NOISE_STD = 1 / 20  # standard deviation of the gray noise, as in the authors' notebooks
KINDS = ("unit", "class")  # unit of the representation; class of the logits
# All functions that the networks in `archs.ARCHS` use to clip negative values.
RECTIFIERS = (F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)

Score = Callable[[Tensor], Tensor]  # function from images (N, 3, H, W) to values (N,) to maximize
Progress = Callable[[int], None]  # function called after each step with the number of images


def _no_progress(images: int) -> None:
    pass


def noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return gray start images with normal noise, `(count, 3, size, size)` in [0, 1].

    Args:
        count: number of images.
        size: height and width, pixels.
        generator: generator on the CPU, so that a seed gives the same images on any device.
    """
    # Draw one image at a time, so that the first images do not depend on the count.
    drawn = [torch.randn(3, size, size, generator=generator) for _ in range(count)]
    return (0.5 + NOISE_STD * torch.stack(drawn)).clamp(0, 1)


def visualize(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    kind: str = "unit",
    eps: float,
    steps: int,
    step_size: float,
    use_best: bool = False,
    progress: Progress = _no_progress,
) -> Tensor:
    """Maximize a unit of the representation or the logit of a class for each image.

    The model runs in eval mode. Afterwards, the mode of every submodule is restored, and `.grad`,
    parameters and BatchNorm statistics are unchanged.

    Args:
        model: network from images `(N, 3, H, W)` in [0, 1] to logits `(N, classes)`. Its method
            `features` returns representations `(N, D)`.
        x: start images `(N, 3, H, W)`, float RGB in [0, 1].
        targets: index of the unit or class to maximize for each image, `(N,)` int64.
        kind: kind of the targets, one of `KINDS`. For units, the backward pass skips the last
            rectifier, because a unit that is 0 has no gradient.
        eps: radius of the L2 ball around x, for images in [0, 1]. 1000 does not constrain images
            smaller than 577 pixels.
        steps: number of steps, at least 1.
        step_size: L2 length of one step.
        use_best: whether to return each image's best iterate, which may be the start, instead of
            the last iterate. The authors return the last iterate.
        progress: function that is called after each step.

    Returns:
        Optimized images `(N, 3, H, W)` inside the ball and inside [0, 1], without gradient.

    Raises:
        UserError: an argument is invalid, or the output does not depend on x.
    """
    if kind not in KINDS:
        raise UserError(f"kind '{kind}' is unknown. Choose from {', '.join(KINDS)}.")
    _check_targets(model, x, targets, kind)
    rows = torch.arange(len(x), device=x.device)
    targets = targets.to(x.device)
    outputs = model if kind == "class" else _features_past_rectifier(model, x)
    return _ascend(
        model,
        x,
        lambda z: outputs(z)[rows, targets],
        eps=eps,
        steps=steps,
        step_size=step_size,
        use_best=use_best,
        progress=progress,
    )


def invert(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    use_best: bool = False,
    progress: Progress = _no_progress,
) -> Tensor:
    """Minimize the `relative_distance` of each image's representation to a target.

    The backward pass skips the last rectifier. Other arguments, the return value and errors are as
    for `visualize`.

    Args:
        targets: representations `(N, D)` to match, which are `features` of other images.
    """
    targets = targets.detach().to(x.device)
    if targets.dim() != 2 or len(targets) != len(x):
        raise UserError(
            f"targets have shape {tuple(targets.shape)}. Pass one representation for each of the "
            f"{len(x)} images."
        )
    features = _features_past_rectifier(model, x)
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


def relative_distance(values: Tensor, targets: Tensor) -> Tensor:
    """Return the relative L2 distance of each row, `|value - target| / |target|`.

    Args:
        values, targets: tensors `(N, ...)` of equal shape.

    Returns:
        Distances `(N,)`.
    """
    difference, targets = (values - targets).flatten(1), targets.flatten(1)
    return difference.norm(dim=1) / targets.norm(dim=1)


def correlation(values: Tensor, targets: Tensor) -> Tensor:
    """Return Pearson's correlation of each row, or NaN for constant rows.

    Args:
        values, targets: tensors `(N, ...)` of equal shape.

    Returns:
        Correlations `(N,)` in [-1, 1].
    """
    a, b = (z.flatten(1).double() for z in (values, targets))
    a, b = (z - z.mean(1, keepdim=True) for z in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).to(values.dtype)


def representations(model: Any, x: Tensor) -> Tensor:
    """Return representations `(N, D)` of x, computed in eval mode without gradients.

    The mode of the model is restored.
    """
    with eval_mode(model), torch.no_grad():
        return model.features(x)


def _check_targets(model: Any, x: Tensor, targets: Tensor, kind: str) -> None:
    if targets.shape != x.shape[:1]:
        raise UserError(
            f"targets have shape {tuple(targets.shape)}. Pass one index for each of the {len(x)} "
            "images."
        )
    with eval_mode(model), torch.no_grad():
        outputs = model(x[:1]) if kind == "class" else model.features(x[:1])
    count = outputs.shape[1]
    if len(invalid := targets[(targets < 0) | (targets >= count)]):
        raise UserError(
            f"{kind} {int(invalid[0])} does not exist in this network. Choose from 0 to "
            f"{count - 1}."
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
    """Maximize each image's score by steepest L2 ascent in the ball around x and in [0, 1]."""
    check(x, "l2", eps, steps, step_size)
    ball, center = CONSTRAINTS["l2"], x.detach()
    x, best, highest = center, center, center.new_full((len(center),), -torch.inf)
    with eval_mode(model):
        for _ in range(steps):
            value, gradient = _value_and_gradient(score, x)
            if use_best:
                best, highest = better(best, highest, x, value)
            x = ball.move(x, gradient, center, eps=eps, step_size=step_size)
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
                "the network's output has no gradient with respect to its images. Remove the "
                "operations that are not differentiable."
            )
        # Compute gradients only for the images, not for the parameters.
        (gradient,) = torch.autograd.grad(value.sum(), [x])
    return value.detach(), gradient


def _features_past_rectifier(model: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `model.features` with a backward pass that skips the last rectifier.

    Features below 0 are not the output of a rectifier, for example in ConvNeXt and ViT. Nothing is
    skipped then: the last rectifier, if any, is inside a block, such as in squeeze and excitation.
    """
    with eval_mode(model), torch.no_grad(), _CountRectifiers() as counter:
        rectified = bool((model.features(x[:1]) >= 0).all())

    def features(z: Tensor) -> Tensor:
        with _CountRectifiers(skipped=counter.calls if rectified else None):
            return model.features(z)

    return features


class _CountRectifiers(TorchFunctionMode):
    """Count the calls of `RECTIFIERS` in a `with` block, and skip one of them in backward passes.

    Calls are counted because a network may use the same nn.ReLU several times, or a function
    instead.

    Args:
        skipped: index of the call to skip, from 1; None to skip no call.
    """

    def __init__(self, skipped: int | None = None):
        super().__init__()
        self.skipped, self.calls = skipped, 0

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in RECTIFIERS:
            return function(*args, **kwargs)
        self.calls += 1
        if self.calls != self.skipped:
            return function(*args, **kwargs)
        x, *rest = args
        y = function(x.detach().clone(), *rest, **kwargs)  # copied for in-place functions
        return x + (y - x.detach())  # equals y; the second term has no gradient
