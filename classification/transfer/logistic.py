"""Multinomial logistic regression over a path of L2 penalties, all of them in one computation.

For each penalty: minimise sum over images of cross entropy + penalty / 2 * |weights|^2; the bias is
free. Preconditioned L-BFGS, batched over penalties: one matrix product serves them all, and those
that have converged drop out. Penalties are solved in levels, from few, far apart, to all; each
level begins where its neighbours on the path say (`levels`, `interpolate`).

The preconditioner is the Hessian with one weight per image for all classes: the mean of the nonzero
eigenvalues of that image's K x K part, (1 - sum p^2) / (K - 1). Unlike a bound on the Hessian
(Böhning 1992) it shrinks with the errors, as it must at weak penalties, where few are left.
"""

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from classification.transfer.lbfgs import MEMORY, Metric, Solution, solve

SPACING = 8  # of the penalties that are solved first
# Of the first penalties, as many are solved together as have this many weight vectors. With fewer,
# a product spends its time reading the features; with more, a near start saves more than a batch.
FIRST_ROWS = 100
CHUNK = 2**20  # logits of one slice of images: small enough for a CPU's cache
BLOCK = 256  # rows of a second moment, half of which is known from the other half
EMPTY = 1e-30  # a curvature per image that is none
STATE_BYTES = 2**31  # of what L-BFGS remembers; penalties beyond that wait for the next batch


class Images:
    """Features in the coordinates of the solver: centred, and a last column of ones.

    With fewer images than features, the optimum lies in the span of the centred images, so that
    coordinates along an orthonormal basis of that span are enough, and lengths stay as they are.

    Args:
        x: `(N, d)` float64 or float32.
        y: `(N,)` int64 in [0, classes); every class has an image.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int):
        self.mean, self.basis, self.y, self.classes = x.mean(0), None, y, classes
        x = x - self.mean
        if len(x) < x.shape[1]:
            self.basis, triangle = torch.linalg.qr(x.T)
            x = triangle.T
        self.x = torch.cat([x, x.new_ones(len(x), 1)], 1)

    def solver_coordinates(self, weights: Tensor, bias: Tensor) -> Tensor:
        """weights `(P, K, d)`, bias `(P, K)` on the features -> `(P, K, D)`."""
        bias = bias + weights @ self.mean
        if self.basis is not None:
            weights = weights @ self.basis
        return torch.cat([weights, bias[..., None]], 2)

    def feature_coordinates(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: `(P, K, D)` -> weights and bias on the features."""
        weights, bias = v[..., :-1], v[..., -1]
        if self.basis is not None:
            weights = weights @ self.basis.T
        return weights.contiguous(), bias - weights @ self.mean

    def gradient_norm(self, g: Tensor) -> Tensor:
        """`(P, K, D)` -> `(P,)`: length of the gradient with respect to weights and bias."""
        weights, bias = g[..., :-1], g[..., -1]
        if self.basis is not None:
            weights = weights @ self.basis.T
        weights = weights + bias[..., None] * self.mean
        return (weights.square().sum((1, 2)) + bias.square().sum(1)).sqrt()

    def objective(self, v: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective `(P,)` float64, gradient `(P, K, D)`, and mass `(P,)` float64: the sum of the
        weights that the preconditioner gives to images."""
        count, classes, width = v.shape
        flat, gradient = v.reshape(-1, width), torch.zeros_like(v).view(-1, width)
        value, mass = v.new_zeros(2, count, dtype=torch.float64)
        rows = max(64, CHUNK // len(flat))
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            residuals, loss = _softmax((flat @ x.T).view(count, classes, -1), y)
            value += loss.sum(1, dtype=torch.float64)
            mass += _curvature(residuals, y).sum(1, dtype=torch.float64)
            gradient.addmm_(residuals.view(len(flat), -1), x)
        gradient = gradient.view_as(v)
        value += penalties.double() / 2 * v[..., :-1].square().sum((1, 2), dtype=torch.float64)
        gradient[..., :-1] += penalties[:, None, None] * v[..., :-1]
        return value, gradient, mass.clamp_min(len(self.x) * EMPTY)

    def second_moment(self, v: Tensor) -> Tensor:
        """`(D, D)` float32: mean of x x^T over images, weighted as in the preconditioner.

        A metric need not be exact, and where features are many, it takes most of the time.

        Args:
            v: `(K, D)`.
        """
        residuals, _ = _softmax((v @ self.x.T)[None], self.y)
        weights = _curvature(residuals, self.y)[0]
        weights = weights / weights.sum().clamp_min(len(self.x) * EMPTY)
        x = self.x.float()
        weighted, moment = x * weights[:, None].float(), x.new_zeros(x.shape[1], x.shape[1])
        for first in range(0, len(moment), BLOCK):
            rows = slice(first, first + BLOCK)
            moment[rows, first:] = weighted[:, rows].T @ x[:, first:]
        return moment.triu() + moment.triu(1).T


def _softmax(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """logits `(P, K, n)`, overwritten -> residuals p - [k = y], and cross entropy `(P, n)`.

    Both stay exact, relatively, where p_y is nearly 1: at weak penalties the objective consists of
    nothing else.
    """
    index = y.expand(len(z), 1, -1)
    z -= z.amax(1, keepdim=True)
    own = z.gather(1, index)[:, 0]
    z.exp_()
    total = z.sum(1)
    loss = total.log() - own
    z /= total[:, None]
    z.scatter_(1, index, 0)
    others = z.sum(1)
    z.scatter_(1, index, -others[:, None])
    return z, torch.where(others < 0.5, -torch.log1p(-others), loss)


def _curvature(residuals: Tensor, y: Tensor) -> Tensor:
    """(1 - sum p^2) / (K - 1) of each image `(P, n)`, from what `_softmax` returns."""
    own = residuals.gather(1, y.expand(len(residuals), 1, -1))[:, 0]  # p_y - 1
    others = residuals.square().sum(1) - own.square()
    return (-own * (2 + own) - others).clamp_min(0) / (residuals.shape[1] - 1)


def levels(count: int, together: int = 1) -> list[list[int]]:
    """Positions on an ascending path of penalties, in the order of solving: from the strongest on
    every eighth, `together` at a time, then all of those halfway between, and so on.

    >>> levels(10)
    [[9], [8], [0], [4], [2, 6], [1, 3, 5, 7]]
    """
    first, step = sorted({*range(0, count, SPACING), count - 1}, reverse=True), SPACING
    found = [first[i : i + together] for i in range(0, len(first), together)]
    seen = set(first)
    while step > 1:
        step //= 2
        found.append([i for i in range(0, count, step) if i not in seen])
        seen.update(found[-1])
    return [level for level in found if level]


def interpolate(at: float, known: dict[float, Tensor]) -> Tensor:
    """The cubic (at ends: less) through two known values on either side; outside of all, the
    nearest value."""
    near = sorted(known, key=lambda x: abs(x - at))
    left, right = [x for x in near if x < at][:2], [x for x in near if x >= at][:2]
    if not left or not right:
        return known[near[0]]
    points = left + right
    factors = [math.prod((at - b) / (a - b) for b in points if b != a) for a in points]
    terms = (factor * known[a] for factor, a in zip(factors, points, strict=True))
    return functools.reduce(torch.add, terms)


def _nearest(known: Iterable[float], at: float) -> float:
    return min(known, key=lambda x: abs(x - at))


def solve_path(
    images: Images, penalties: Tensor, start: Tensor | None, tolerance: float, max_iterations: int
) -> Solution:
    """All penalties `(P,)` float64, ascending and distinct.

    Args:
        start: `(P, K, D)`, to begin all of them there, or None.
        tolerance, max_iterations: as for `lbfgs.solve`.
    """
    logs, zero = penalties.log().tolist(), images.x.new_zeros(images.classes, images.x.shape[1])
    plain = Metric(images.second_moment(zero), 1.0)
    everything = list(range(len(logs)))
    state = (3 * MEMORY + 10) * zero.numel() * zero.element_size()
    done: dict[int, tuple] = {}
    together = max(1, FIRST_ROWS // images.classes)
    for level in levels(len(logs), together) if start is None else [everything]:
        for part in torch.tensor(level).split(max(1, STATE_BYTES // state)):
            part, known = part.tolist(), {logs[i]: row for i, row in done.items()}
            if start is not None:
                v, metrics = start[part], [plain] * len(part)
            elif not known:
                v, metrics = zero.expand(len(part), -1, -1), [plain] * len(part)
            else:
                vs = {at: row[0] for at, row in known.items()}
                v = torch.stack([interpolate(logs[i], vs) for i in part])
                metrics = [known[_nearest(known, logs[i])][-1] for i in part]
            found = solve(images, penalties[part], v, metrics, tolerance, max_iterations)
            rows = zip(
                found.v,
                found.objective,
                found.gradient,
                found.iterations,
                found.converged,
                found.metrics,
                strict=True,
            )
            done.update(zip(part, rows, strict=True))
    *columns, metrics = zip(*(done[i] for i in everything), strict=True)
    v, objective, gradient, iterations, converged = (torch.stack(column) for column in columns)
    return Solution(v, objective, gradient, iterations, converged, list(metrics))
