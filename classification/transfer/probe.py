"""Linear probes by logistic regression on features, with a penalty selected on held-out images.

The protocol follows Kornblith et al. (2019, "Do better ImageNet models transfer better?"): 45
penalties, logarithmically spaced from 1e-6 to 1e5, on features without standardization. The effect
of a penalty depends on the scale of the features and on the number of images, because the cross
entropies are summed. The penalty is 1 / C, with scikit-learn's C.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from classification import metrics
from classification.datasets.split import held_out_mask
from classification.transfer.logistic import Images, check_finite, solve_path
from classification.transfer.memory import Plan, Size, make_plan
from classification.transfer.rows import Rows
from robust_backbones.core.errors import UserError

PER_DECADE = 4  # penalties per decade
PENALTIES = tuple(10 ** (-6 + i / PER_DECADE) for i in range(45))
DECADES = 2  # decades that one extension adds
EXTENSIONS = 3  # maximum number of extensions of each end
LOGITS = 2**24  # number of logits in memory at once

Accuracy = Callable[[Tensor, Tensor, int], float]


@dataclass
class Probes:
    """P linear classifiers on the same features.

    Attributes:
        weights, bias: parameters `(P, K, d)` and `(P, K)`. For a class without training images, the
            weights are 0 and the bias is -inf, which is the limit of the optimum.
        penalties: penalties `(P,)`, float64.
        objective: sum of cross entropies (nats) + penalty / 2 * sum of weights^2, `(P,)` float64.
        gradient_norm: norm of the objective's gradient with respect to weights and bias, `(P,)`.
        iterations: numbers of iterations `(P,)`, int64.
        converged: whether each problem converged, `(P,)` bool.
    """

    weights: Tensor
    bias: Tensor
    penalties: Tensor
    objective: Tensor
    gradient_norm: Tensor
    iterations: Tensor
    converged: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Compute logits `(P, N, K)` for features `(N, d)`."""
        x = x.to(self.weights)
        return x @ self.weights.mT + self.bias[:, None]

    def predict(self, x: Tensor | Rows) -> Tensor:
        """Predict classes `(P, N)` int64 for features `(N, d)`, on the device of the weights.

        Raises:
            UserError: a feature is not finite.
        """
        return torch.cat([part.argmax(2) for part in self._logit_parts(x)], 1)

    def all_logits(self, x: Tensor | Rows) -> Tensor:
        """Compute logits `(P, N, K)` like `logits`, for features in memory-mapped files as well.

        Raises:
            UserError: a feature is not finite.
        """
        return torch.cat([*self._logit_parts(x)], 1)

    def _logit_parts(self, x: Tensor | Rows) -> Iterator[Tensor]:
        for part in Rows.of(x).parts(max(1, LOGITS // self.bias.numel())):
            check_finite(part)
            yield self.logits(part)

    def one(self, index: int) -> "Probes":
        """Return one of the classifiers as `Probes` with P = 1."""
        return _gather(self, torch.tensor([range(len(self.bias))[index]]))


@dataclass
class Chosen:
    """Result of `choose`.

    Attributes:
        penalty: penalty with the best validation accuracy.
        value: validation accuracy with this penalty, in percent.
        curve: list of `(penalty, validation accuracy in percent)` for all evaluated penalties, with
            ascending penalties.
        edge: whether the best penalty is at an end of the path that could not be extended further.
        extended: number of decades by which the path was extended, summed over both ends.
        probes: classifiers for all evaluated penalties, fitted to the training images.
    """

    penalty: float
    value: float
    curve: list[tuple[float, float]]
    edge: bool
    extended: int
    probes: Probes


def fit(
    x: Tensor | Rows,
    y: Tensor,
    classes: int,
    penalties: Sequence[float] | Tensor = PENALTIES,
    *,
    start: Probes | None = None,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
    dtype: torch.dtype = torch.float64,
    plan: Plan | None = None,
) -> Probes:
    """Fit one classifier per penalty. All of them are solved together.

    Args:
        x: finite features `(N, d)`, floating-point.
        y: labels `(N,)`, int64 in [0, classes).
        classes: number of classes K.
        penalties: positive penalties `(P,)`, in any order.
        start: probes to start from. Each penalty starts from the probe with the nearest penalty.
        tolerance: relative decrease of the objective, estimated from the gradient, at which a
            penalty has converged.
        max_iterations: maximum number of iterations. `converged` is False for penalties that need
            more.
        dtype: dtype of the computation. float32 is faster, but needs a tolerance of about 1e-5.
        plan: memory plan with the device to use; None: the device of x and its free memory.

    Raises:
        UserError: shapes, labels, penalties or features are invalid, fewer than two classes
            have images, or the memory is too small.
    """
    x = _checked(x, y, classes)
    given = torch.as_tensor(penalties, dtype=torch.float64).flatten()
    if not (len(given) and (given > 0).all() and given.isfinite().all()):
        raise UserError(f"penalties {given.tolist()}: give one or more finite positive numbers.")
    present = torch.bincount(y, minlength=classes).nonzero().flatten()
    if len(present) < 2:
        raise UserError(
            f"only {len(present)} class has training images. A probe needs two or more. Train on "
            "more images."
        )
    if plan is None:
        size = Size(len(x), x.width, classes, len(given))
        plan = make_plan(size, x.pieces[0].device)
    path, position = given.to(plan.device).unique(return_inverse=True)
    images = Images(x, torch.searchsorted(present, y), len(present), plan, dtype)
    present = present.to(plan.device)
    if start is not None:
        _check_start(start, x, classes)
        distance = (path.log()[:, None] - start.penalties.to(path).log()).abs()
        near = _gather(start, distance.argmin(1))
        # A class without images in `start` has a bias of -inf. Start from 0 instead.
        bias = near.bias.to(images.mean)[:, present]
        bias = torch.where(bias.isfinite(), bias, 0)
        v = images.solver_coordinates(near.weights.to(images.mean)[:, present], bias)
        start = v - v.mean(1, keepdim=True)  # the softmax does not change with this shift
    found = solve_path(images, path, start, tolerance, max_iterations)
    weights = images.mean.new_zeros(len(given), classes, x.width)
    bias = images.mean.new_full((len(given), classes), -torch.inf)
    chosen = [found[i] for i in position.tolist()]
    for row, optimum in enumerate(chosen):
        some, some_bias = images.feature_coordinates(optimum.v[None])
        weights[row, present], bias[row, present] = some[0], some_bias[0]
    return Probes(
        weights,
        bias,
        path[position],
        torch.stack([optimum.objective for optimum in chosen]),
        torch.stack([optimum.gradient_norm for optimum in chosen]),
        torch.stack([optimum.iterations for optimum in chosen]),
        torch.stack([optimum.converged for optimum in chosen]),
    )


def choose(
    x_train: Tensor | Rows,
    y_train: Tensor,
    x_val: Tensor | Rows,
    y_val: Tensor,
    classes: int,
    metric: Accuracy,
    *,
    penalties: Sequence[float] = PENALTIES,
    extend: bool = True,
    **options: Any,
) -> Chosen:
    """Choose the penalty with the best validation accuracy.

    If several penalties are best, choose the penalty nearest to the middle of the path. A penalty
    at an end of the path is therefore chosen only if it is better than all others. In this case,
    extend the path by two decades at this end, up to three times per end. Ties are common at both
    ends. Weak penalties separate separable classes equally well, and strong penalties classify
    balanced classes equally badly.

    Args:
        x_train, x_val: features `(N, d)`.
        y_train, y_val: labels `(N,)`, int64 in [0, classes).
        classes: number of classes.
        metric: function `(predictions, labels, classes) -> accuracy in percent`, as in
            `metrics.METRICS`.
        penalties: path of penalties to choose from.
        extend: whether to extend the path if the best penalty is at an end.
        options: keyword arguments of `fit`.

    Raises:
        UserError: `fit` rejects the arguments, or there are fewer than three penalties.
    """
    _checked(x_val, y_val, classes)
    if len(set(penalties)) < 3:
        raise UserError(f"penalties {list(penalties)}: give three or more to choose from.")
    probes = fit(x_train, y_train, classes, sorted(set(penalties)), **options)
    left = {0: EXTENSIONS, -1: EXTENSIONS} if extend else {0: 0, -1: 0}
    labels, extended = y_val.cpu(), 0
    values = [metric(row, labels, classes) for row in probes.predict(x_val).cpu()]
    while True:
        best = max(range(len(values)), key=lambda i: (values[i], -abs(i - len(values) // 2)))
        end = {0: 0, len(values) - 1: -1}.get(best)
        if end is None or not left[end]:
            break
        left[end] -= 1
        extended += DECADES
        edge, sign = probes.penalties[end].item(), 1 if end else -1
        powers = range(1, PER_DECADE * DECADES + 1)
        more = sorted(edge * 10 ** (sign * i / PER_DECADE) for i in powers)
        added = fit(x_train, y_train, classes, more, **options | {"start": probes.one(end)})
        parts = [probes, added] if end else [added, probes]
        new = [metric(row, labels, classes) for row in added.predict(x_val).cpu()]
        values = values + new if end else new + values
        probes = Probes(*(torch.cat(c) for c in zip(*map(_columns, parts), strict=True)))
    curve = list(zip(probes.penalties.tolist(), values, strict=True))
    return Chosen(*curve[best], curve, end is not None, extended, probes)


def refit(
    x: Tensor | Rows,
    y: Tensor,
    classes: int,
    penalty: float,
    start: Probes | None = None,
    **options: Any,
) -> Probes:
    """Fit the probe for one penalty (P = 1). `fit` describes the arguments and errors."""
    return fit(x, y, classes, [penalty], start=start, **options)


def fit_probe(
    x: Tensor, y: Tensor, *, penalty: float | None = None, held_out: float = 0.2, seed: int = 0
) -> nn.Linear:
    """Fit a linear probe by logistic regression, as `measure_transfer` does.

    The probe minimizes the sum of the cross entropies + penalty / 2 * |weights|^2, in float64.

    Args:
        x: features `(N, d)`, float32 or float64.
        y: labels `(N,)`, int64 in [0, K).
        penalty: penalty; None: select it by top-1 accuracy on held-out images, then fit to all.
        held_out: fraction of each class to select on, in (0, 1).
        seed: seed for the selection of the held-out images.

    Returns:
        Layer that maps features `(N, d)` to logits `(N, K)`, with the dtype and device of x.

    Raises:
        UserError: shapes, labels, features or the penalty are invalid, or the images are too few.
    """
    classes, start = int(y.max()) + 1, None
    if penalty is None:
        mask = held_out_mask(y.cpu(), held_out, seed).to(y.device)
        chosen = choose(x[~mask], y[~mask], x[mask], y[mask], classes, metrics.top1)
        penalty = chosen.penalty
        start = chosen.probes.one([value for value, _ in chosen.curve].index(penalty))
    found = refit(x, y, classes, penalty, start)
    probe = nn.Linear(x.shape[1], classes, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        probe.weight.copy_(found.weights[0])
        probe.bias.copy_(found.bias[0])
    return probe.requires_grad_(False)


def few_shot(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Draw a random set of `shots` images per class.

    With the same seed, the images for fewer shots are a subset of the images for more shots.

    Args:
        labels: labels `(N,)`, int64. Their distinct values are the classes.
        shots: number of images per class, at least 1.
        seed: seed for the draw.

    Returns:
        Indices of the images `(classes * shots,)` int64, in the order of the classes.

    Raises:
        UserError: a class has fewer than `shots` images, or `shots` is less than 1.
    """
    most = min(_class_sizes(labels).values(), default=0)
    if not 1 <= shots <= most:
        raise UserError(
            f"--shots {shots}: the smallest class has {most} training images. Choose 1 to {most}."
        )
    return _draw(labels, lambda _: shots, seed)


def draw_fraction(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draw a random fraction of the images of each class, at least one image per class.

    With the same seed, the images for a smaller fraction are a subset of those for a larger one.

    Args:
        labels: labels `(N,)`, int64. Their distinct values are the classes.
        fraction: fraction of the images of each class, in (0, 1].
        seed: seed for the draw.

    Returns:
        Indices of the images, int64, in the order of the classes.
    """
    assert 0 < fraction <= 1, fraction
    return _draw(labels, lambda size: max(1, round(fraction * size)), seed)


def _class_sizes(labels: Tensor) -> dict[int, int]:
    """Map each class to its number of images."""
    return {c: n for c, n in enumerate(torch.bincount(labels.cpu()).tolist()) if n}


def _draw(labels: Tensor, number: Callable[[int], int], seed: int) -> Tensor:
    """Draw images of each class. `number` is the number of images to draw for a class size."""
    generator, chosen = torch.Generator().manual_seed(seed), []
    for c, size in _class_sizes(labels).items():
        members = (labels.cpu() == c).nonzero().flatten()
        chosen.append(members[torch.randperm(size, generator=generator)[: number(size)]])
    return torch.cat(chosen)


def _columns(probes: Probes) -> tuple[Tensor, ...]:
    return tuple(vars(probes).values())


def _gather(probes: Probes, rows: Tensor) -> Probes:
    return Probes(*(column[rows.to(column.device)] for column in _columns(probes)))


def _checked(x: Tensor | Rows, y: Tensor, classes: int) -> Rows:
    shape = tuple(x.shape) if isinstance(x, Tensor) else (len(x), x.width)
    if len(shape) != 2 or y.shape != shape[:1] or not shape[0]:
        raise UserError(
            f"features have the shape {shape}, labels {tuple(y.shape)}. Give (N, d) and "
            "(N,), N at least 1."
        )
    x = Rows.of(x)
    if not x.pieces[0].is_floating_point():
        raise UserError(f"features have dtype {x.pieces[0].dtype}. Give floating-point numbers.")
    if y.dtype != torch.int64 or y.min() < 0 or y.max() >= classes:
        raise UserError(
            f"labels are {y.dtype} from {y.min()} to {y.max()}. Give int64 in [0, {classes})."
        )
    return x


def _check_start(start: Probes, x: Rows, classes: int) -> None:
    if start.weights.shape[1:] != (classes, x.width):
        raise UserError(
            f"start has (classes, features) {tuple(start.weights.shape[1:])}, but the data has "
            f"{(classes, x.width)}. Give probes of the same task."
        )
