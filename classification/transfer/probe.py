"""Linear probes on features: logistic regression with its penalty chosen on held-out images, and
n images per class. `knn.py` has the probe without any training.

The protocol is that of Kornblith et al. (2019, "Do better ImageNet models transfer better?"): 45
penalties, logarithmically spaced from 1e-6 to 1e5, on features as they are. Nothing standardises
them: a penalty means something relative to the scale of the features, and to the number of images,
since the cross entropy is a sum. The same holds for scikit-learn, whose C is 1 / penalty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from classification.transfer.logistic import Images, solve_path
from robust_backbones.core.errors import UserError

PER_DECADE = 4  # penalties, on the path and where it is extended
PENALTIES = tuple(10 ** (-6 + i / PER_DECADE) for i in range(45))
DECADES = 2  # added at once
EXTENSIONS = 3  # of each end
LOGITS = 2**24  # in memory at once

Accuracy = Callable[[Tensor, Tensor, int], float]


@dataclass
class Probes:
    """P linear classifiers on the same features.

    Attributes:
        weights, bias: `(P, K, d)` and `(P, K)`, on the features as they are given. A class without
            a training image has weights 0 and bias -inf: the limit of the optimum.
        penalties: `(P,)` float64.
        objective: `(P,)` float64, sum of cross entropy (nats) + penalty / 2 * sum of weights^2.
        gradient_norm: `(P,)`, length of the objective's gradient in weights and bias.
        iterations: `(P,)` int64. converged: `(P,)` bool.
    """

    weights: Tensor
    bias: Tensor
    penalties: Tensor
    objective: Tensor
    gradient_norm: Tensor
    iterations: Tensor
    converged: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """x: `(N, d)` -> `(P, N, K)`."""
        x = x.to(self.weights)
        return x @ self.weights.mT + self.bias[:, None]

    def predict(self, x: Tensor) -> Tensor:
        """x: `(N, d)` -> classes `(P, N)` int64."""
        rows = max(1, LOGITS // self.bias.numel())
        return torch.cat([self.logits(part).argmax(2) for part in x.split(rows)], 1)

    def one(self, index: int) -> "Probes":
        """One of them, P = 1."""
        return _gather(self, torch.tensor([range(len(self.bias))[index]]))


@dataclass
class Chosen:
    """What `choose` found.

    Attributes:
        penalty: of the best validation value.
        value: percent, at that penalty.
        curve: `(penalty, validation value in percent)` of all penalties tried, ascending.
        edge: the best penalty is the weakest or strongest one tried, and the path could not, or
            was not allowed to, be extended further.
        extended: decades by which the path was extended, at both ends together.
        probes: on the training images, of all penalties tried; a start for `refit`.
    """

    penalty: float
    value: float
    curve: list[tuple[float, float]]
    edge: bool
    extended: int
    probes: Probes


def fit(
    x: Tensor,
    y: Tensor,
    classes: int,
    penalties: Sequence[float] | Tensor = PENALTIES,
    *,
    start: Probes | None = None,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
    dtype: torch.dtype = torch.float64,
) -> Probes:
    """One classifier for each penalty, all solved together, on the device of x.

    Args:
        x: `(N, d)` finite features.
        y: `(N,)` int64 in [0, classes).
        penalties: `(P,)` positive, in any order.
        start: begin each penalty at that of these probes which is nearest to it.
        tolerance: stop where half the squared norm of the gradient, in the metric of the inverse
            Hessian, is at most this share of the objective: an estimate of what is left to gain.
        max_iterations: of each penalty; then `converged` is False.
        dtype: to compute in. float32 is faster, and needs a tolerance of 1e-5 or so.

    Raises:
        UserError: shapes, labels, penalties or features cannot be used, or fewer than two classes
            have images.
    """
    _check(x, y, classes)
    given = torch.as_tensor(penalties, dtype=torch.float64).flatten().to(x.device)
    if not (len(given) and (given > 0).all() and given.isfinite().all()):
        raise UserError(f"penalties {given.tolist()}; give one or more finite positive numbers.")
    path, position = given.unique(return_inverse=True)
    y = y.to(x.device)
    present = torch.bincount(y, minlength=classes).nonzero().flatten()
    if len(present) < 2:
        raise UserError(f"images of {len(present)} class only; a probe needs two or more.")
    images = Images(x.detach().to(dtype), torch.searchsorted(present, y), len(present))
    if start is not None:
        _check_start(start, x, classes)
        distance = (path.log()[:, None] - start.penalties.to(path).log()).abs()
        near = _gather(start, distance.argmin(1))
        # A class that had no images has some now; its bias begins at the mean of the others.
        bias = near.bias.to(images.x)[:, present]
        bias = torch.where(bias.isfinite(), bias, 0)
        v = images.solver_coordinates(near.weights.to(images.x)[:, present], bias)
        start = v - v.mean(1, keepdim=True)  # what all classes share changes no probability
    found = solve_path(images, path, start, tolerance, max_iterations)
    some, some_bias = images.feature_coordinates(found.v)
    weights = x.new_zeros(len(path), classes, x.shape[1], dtype=dtype)
    bias = x.new_full((len(path), classes), -torch.inf, dtype=dtype)
    weights[:, present], bias[:, present] = some, some_bias
    probes = Probes(
        weights,
        bias,
        path,
        found.objective,
        images.gradient_norm(found.gradient),
        found.iterations,
        found.converged,
    )
    return _gather(probes, position)


def choose(
    x_train: Tensor,
    y_train: Tensor,
    x_val: Tensor,
    y_val: Tensor,
    classes: int,
    metric: Accuracy,
    *,
    penalties: Sequence[float] = PENALTIES,
    extend: bool = True,
    **options: Any,
) -> Chosen:
    """The penalty with the best validation value; of several, the one nearest to the path's middle.

    Where the best one is at an end of the path, two decades are added there, up to three times for
    each end. It then is better than all others: at the weak end, separable classes make all
    penalties alike, and so do balanced classes at the strong end; of such none at the end is taken.

    Args:
        x_train, x_val: `(N, d)`; y_train, y_val: `(N,)` int64 in [0, classes).
        metric: (predictions, labels, classes) -> percent, as in `metrics.METRICS`.
        extend: whether the path may be extended.
        options: of `fit`.

    Raises:
        UserError: as `fit`; fewer than three penalties.
    """
    _check(x_val, y_val, classes)
    if len(set(penalties)) < 3:
        raise UserError(f"penalties {list(penalties)}; give three or more to choose from.")
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
    x: Tensor, y: Tensor, classes: int, penalty: float, start: Probes | None = None, **options: Any
) -> Probes:
    """The probe (P = 1) of the chosen penalty on all images; arguments and errors as for `fit`."""
    return fit(x, y, classes, [penalty], start=start, **options)


def few_shot(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Which images to keep for `shots` per class: `(classes * shots,)` int64, class by class.

    With the same seed, those of fewer shots are among those of more.

    Args:
        labels: `(N,)` int64; every number among them is a class.

    Raises:
        UserError: a class has fewer images, or `shots` is less than 1.
    """
    counts = {c: n for c, n in enumerate(torch.bincount(labels.cpu()).tolist()) if n}
    short = [c for c, n in counts.items() if n < shots]
    if shots < 1 or short:
        most = min(counts.values(), default=0)
        raise UserError(
            f"{shots} images per class asked for; class {short or 'of any number'} has "
            f"fewer. Ask for 1 to {most}."
        )
    generator, chosen = torch.Generator().manual_seed(seed), []
    for c in counts:
        members = (labels.cpu() == c).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(chosen)


def _columns(probes: Probes) -> tuple[Tensor, ...]:
    return tuple(vars(probes).values())


def _gather(probes: Probes, rows: Tensor) -> Probes:
    return Probes(*(column[rows.to(column.device)] for column in _columns(probes)))


def _check(x: Tensor, y: Tensor, classes: int) -> None:
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise UserError(
            f"features {tuple(x.shape)} and labels {tuple(y.shape)}; "
            "give (N, d) and (N,), N at least 1."
        )
    if not (x.is_floating_point() and x.isfinite().all()):
        raise UserError(
            f"features ({x.dtype}) are not all finite floating-point numbers; look at "
            "the network and the images that they come from."
        )
    if y.dtype != torch.int64 or y.min() < 0 or y.max() >= classes:
        raise UserError(
            f"labels ({y.dtype}) from {y.min()} to {y.max()}; give int64 in [0, {classes})."
        )


def _check_start(start: Probes, x: Tensor, classes: int) -> None:
    if start.weights.shape[1:] != (classes, x.shape[1]):
        raise UserError(
            f"start has (classes, features) {tuple(start.weights.shape[1:])}, the data "
            f"{(classes, x.shape[1])}; give probes of the same task."
        )
