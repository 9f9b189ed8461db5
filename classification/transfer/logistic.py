"""Multinomial logistic regression over a path of L2 penalties.

For each penalty, minimize the sum of the cross entropies + penalty / 2 * |weights|^2. The bias has
no penalty. Preconditioned L-BFGS solves many penalties at once. The problems share each matrix
product, and converged problems leave the batch. Penalties are solved in levels: first a few
penalties that are far apart, then the penalties between them. Each level starts from solutions that
are interpolated between solved penalties.

The preconditioner is the inverse of an approximate Hessian with one weight per image for all
classes. The weight is the mean of the nonzero eigenvalues of the image's K x K part,
(1 - sum p^2) / (K - 1). Unlike an upper bound of the Hessian (Böhning 1992), the weight shrinks
with the error of the image. At weak penalties, most errors are small.

Shapes: P penalties, N images, K classes, d features, D unknowns per class in solver coordinates.
"""

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from classification.transfer.lbfgs import MEMORY, Preconditioner, Solution, solve

SPACING = 8  # spacing of the penalties that are solved first: every eighth one
# Number of weight vectors (penalties times classes) in the first batches. In smaller batches, a
# matrix product spends most of its time on reading the features. In larger batches, more penalties
# start from 0 instead of from a good starting point, which costs more time than batching saves.
FIRST_ROWS = 100
CHUNK = 2**20  # number of logits computed at once, small enough for a CPU's cache
BLOCK = 256  # rows of the second moment computed at once; only one triangle is computed
EMPTY = 1e-30  # smallest mean weight of an image, to avoid a division by zero
STATE_BYTES = 2**31  # memory limit of L-BFGS; the remaining penalties form the next batch


class Images:
    """Centered features in solver coordinates, with a last column of ones.

    With fewer images than features, the optimum is in the span of the centered images. In this
    case, the solver coordinates are coordinates in an orthonormal basis of that span, which
    preserves lengths.

    Args:
        x: features `(N, d)`, float64 or float32.
        y: labels `(N,)`, int64 in [0, classes). Every class has at least one image.
        classes: number of classes.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int):
        self.mean, self.basis, self.y, self.classes = x.mean(0), None, y, classes
        x = x - self.mean
        if len(x) < x.shape[1]:
            self.basis, triangle = torch.linalg.qr(x.T)
            x = triangle.T
        self.x = torch.cat([x, x.new_ones(len(x), 1)], 1)

    def solver_coordinates(self, weights: Tensor, bias: Tensor) -> Tensor:
        """Convert weights `(P, K, d)` and bias `(P, K)` to solver coordinates `(P, K, D)`."""
        bias = bias + weights @ self.mean
        if self.basis is not None:
            weights = weights @ self.basis
        return torch.cat([weights, bias[..., None]], 2)

    def feature_coordinates(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Convert solver coordinates `(P, K, D)` to weights `(P, K, d)` and bias `(P, K)`."""
        weights, bias = v[..., :-1], v[..., -1]
        if self.basis is not None:
            weights = weights @ self.basis.T
        return weights.contiguous(), bias - weights @ self.mean

    def gradient_norm(self, g: Tensor) -> Tensor:
        """Convert a gradient `(P, K, D)` to its norm `(P,)` with respect to weights and bias."""
        weights, bias = g[..., :-1], g[..., -1]
        if self.basis is not None:
            weights = weights @ self.basis.T
        weights = weights + bias[..., None] * self.mean
        return (weights.square().sum((1, 2)) + bias.square().sum(1)).sqrt()

    def objective(self, v: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the objective of all problems.

        Args:
            v: unknowns `(P, K, D)` in solver coordinates.
            penalties: penalties `(P,)`.

        Returns:
            Objective `(P,)` float64, gradient `(P, K, D)`, and mass `(P,)` float64: the sum of the
            images' weights in the preconditioner.
        """
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
        """Compute the weighted mean of x x^T over the images, `(D, D)` float32.

        The preconditioner uses the same weights. float32 is accurate enough for a
        preconditioner, and fast: with many features, this product takes most of the time.

        Args:
            v: unknowns of one problem `(K, D)`.
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
    """Compute residuals p - [k = y] `(P, K, n)` and cross entropies `(P, n)`, and overwrite z.

    z are the logits. The relative errors of both outputs are small even if p_y is nearly 1. At weak
    penalties, p_y is nearly 1 for all images.
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
    """Compute (1 - sum p^2) / (K - 1) of each image, `(P, n)`, from the residuals of `_softmax`."""
    own = residuals.gather(1, y.expand(len(residuals), 1, -1))[:, 0]  # p_y - 1
    others = residuals.square().sum(1) - own.square()
    return (-own * (2 + own) - others).clamp_min(0) / (residuals.shape[1] - 1)


def levels(count: int, together: int = 1) -> list[list[int]]:
    """Return the indices on an ascending path of penalties, in the order of solving.

    The first levels have every eighth penalty, from the strongest to the weakest, `together` per
    level. The next level has the penalties halfway between them, and so on.

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
    """Interpolate with the polynomial through up to two known values on each side of `at`.

    Outside the range of known positions, return the value at the nearest position.
    """
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
    """Solve the problems of all penalties.

    Args:
        images: features and labels.
        penalties: penalties `(P,)`, float64, ascending and distinct.
        start: initial unknowns `(P, K, D)`; None: start from 0 and from interpolated solutions.
        tolerance, max_iterations: stopping criteria, as for `lbfgs.solve`.
    """
    logs, zero = penalties.log().tolist(), images.x.new_zeros(images.classes, images.x.shape[1])
    plain = Preconditioner(images.second_moment(zero), 1.0)
    everything = list(range(len(logs)))
    state = (3 * MEMORY + 10) * zero.numel() * zero.element_size()
    done: dict[int, tuple] = {}
    together = max(1, FIRST_ROWS // images.classes)
    for level in levels(len(logs), together) if start is None else [everything]:
        for part in torch.tensor(level).split(max(1, STATE_BYTES // state)):
            part, known = part.tolist(), {logs[i]: row for i, row in done.items()}
            if start is not None:
                v, preconditioners = start[part], [plain] * len(part)
            elif not known:
                v, preconditioners = zero.expand(len(part), -1, -1), [plain] * len(part)
            else:
                vs = {at: row[0] for at, row in known.items()}
                v = torch.stack([interpolate(logs[i], vs) for i in part])
                preconditioners = [known[_nearest(known, logs[i])][-1] for i in part]
            found = solve(images, penalties[part], v, preconditioners, tolerance, max_iterations)
            rows = zip(
                found.v,
                found.objective,
                found.gradient,
                found.iterations,
                found.converged,
                found.preconditioners,
                strict=True,
            )
            done.update(zip(part, rows, strict=True))
    *columns, preconditioners = zip(*(done[i] for i in everything), strict=True)
    v, objective, gradient, iterations, converged = (torch.stack(column) for column in columns)
    return Solution(v, objective, gradient, iterations, converged, list(preconditioners))
