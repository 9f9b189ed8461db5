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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from classification.transfer.lbfgs import Preconditioner, solve
from classification.transfer.memory import MOMENT_SLICE, Plan, state_bytes
from classification.transfer.rows import Rows
from robust_backbones.core.errors import UserError

SPACING = 8  # spacing of the penalties that are solved first: every eighth one
# Number of weight vectors (penalties times classes) in the first batches. In smaller batches, a
# matrix product spends most of its time on reading the features. In larger batches, more penalties
# start from 0 instead of from a good starting point, which costs more time than batching saves.
FIRST_ROWS = 100
BLOCK = 256  # rows of the second moment computed at once; only one triangle is computed
EMPTY = 1e-30  # smallest mean weight of an image, to avoid a division by zero


class Images:
    """Centered features in solver coordinates, with a last column of ones.

    With fewer images than features, the optimum is in the span of the centered images. In this
    case, the solver coordinates are coordinates in an orthonormal basis of that span, which
    preserves lengths.

    Args:
        x: features of N images.
        y: labels `(N,)`, int64 in [0, classes). Every class has at least one image.
        classes: number of classes.
        plan: memory plan. The computation runs on its device.
        dtype: dtype of the computation, float64 or float32.

    Raises:
        UserError: a feature is not finite.
    """

    def __init__(self, x: Rows, y: Tensor, classes: int, plan: Plan, dtype: torch.dtype):
        self.y, self.classes, self.plan = y.to(plan.device), classes, plan
        self.basis, self.centered = None, None
        self.rows, few = x, len(x) < x.width
        if plan.store == "device" and not few:
            self.rows = Rows.of(torch.cat([part.to(plan.device) for part in self._parts()]))
        total = torch.zeros(x.width, dtype=torch.float64, device=plan.device)
        for part in self._parts():
            total += part.to(total).sum(0)
        check_finite(total)
        self.mean = (total / len(x)).to(dtype)
        self.width = min(len(x), x.width) + 1
        if few:
            centered = torch.cat([self._center(part) for part in self._parts()])[:, :-1]
            self.basis, triangle = torch.linalg.qr(centered.T)
            self.centered = torch.cat([triangle.T, triangle.new_ones(len(x), 1)], 1)
        elif plan.store == "centered":
            self.centered = self.mean.new_empty(len(x), self.width)
            first = 0
            for part in self._parts():
                self._center(part, self.centered[first : first + len(part)])
                first += len(part)

    def _parts(self) -> Iterator[Tensor]:
        return self.rows.parts(max(1, self.plan.slice_size // self.rows.width))

    def _center(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        """Subtract the mean from features `(n, d)`, and append a column of ones."""
        if out is None:
            out = self.mean.new_empty(len(part), part.shape[1] + 1)
        torch.sub(part.to(self.mean), self.mean, out=out[:, :-1])
        out[:, -1] = 1
        return out

    def slices(self, size: int, columns: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over features `(n, D)` and labels `(n,)`.

        Args:
            size: largest number of values in a slice.
            columns: number of values that the caller computes for each image.
        """
        rows = max(64, size // columns)
        if self.centered is None:
            rows = max(64, min(rows, size // self.width))
        for first, y in zip(range(0, len(self.y), rows), self.y.split(rows), strict=True):
            if self.centered is None:
                yield self._center(self.rows.part(first, first + rows)), y
            else:
                yield self.centered[first : first + rows], y

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
        for x, y in self.slices(self.plan.slice_size, len(flat)):
            residuals, loss = _softmax((flat @ x.T).view(count, classes, -1), y)
            value += loss.sum(1, dtype=torch.float64)
            mass += _curvature(residuals, y).sum(1, dtype=torch.float64)
            gradient.addmm_(residuals.view(len(flat), -1), x)
        gradient = gradient.view_as(v)
        value += penalties.double() / 2 * v[..., :-1].square().sum((1, 2), dtype=torch.float64)
        gradient[..., :-1] += penalties[:, None, None] * v[..., :-1]
        return value, gradient, mass.clamp_min(len(self.y) * EMPTY)

    def second_moment(self, v: Tensor) -> Tensor:
        """Compute the weighted mean of x x^T over the images, `(D, D)` float32.

        The preconditioner uses the same weights. float32 is accurate enough for a
        preconditioner, and fast: with many features, this product takes most of the time.

        Args:
            v: unknowns of one problem `(K, D)`.
        """
        slices = functools.partial(self.slices, max(self.plan.slice_size, MOMENT_SLICE))
        weights = torch.cat(
            [
                _curvature(_softmax((v @ x.T)[None], y)[0], y)[0]
                for x, y in slices(max(len(v), self.width))
            ]
        )
        weights /= weights.sum().clamp_min(len(self.y) * EMPTY)
        moment = torch.zeros(self.width, self.width, device=v.device)
        first = 0
        for x, _ in slices(self.width):
            x = x.float()
            weighted = x * weights[first : first + len(x), None].float()
            first += len(x)
            for row in range(0, self.width, BLOCK):
                rows = slice(row, row + BLOCK)
                moment[rows, row:].addmm_(weighted[:, rows].T, x[:, row:])
        return moment.triu() + moment.triu(1).T


def check_finite(x: Tensor) -> None:
    """Check features, or their sum over images, which is finite only if they are.

    Raises:
        UserError: a number is not finite.
    """
    if not x.isfinite().all():
        raise UserError("features must be finite numbers. Check the network and its images.")


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


@dataclass(frozen=True)
class Optimum:
    """Solution for one penalty.

    Attributes:
        v: unknowns `(K, D)`.
        objective: value of the objective, float64 `()`.
        gradient_norm: norm of the gradient with respect to weights and bias `()`.
        iterations: number of iterations, int64 `()`.
        converged: whether the problem converged, bool `()`.
        preconditioner: preconditioner for similar penalties.
    """

    v: Tensor
    objective: Tensor
    gradient_norm: Tensor
    iterations: Tensor
    converged: Tensor
    preconditioner: Preconditioner


def solve_path(
    images: Images, penalties: Tensor, start: Tensor | None, tolerance: float, max_iterations: int
) -> list[Optimum]:
    """Solve the problems of all penalties.

    Args:
        images: features and labels.
        penalties: penalties `(P,)`, float64, ascending and distinct.
        start: initial unknowns `(P, K, D)`; None: start from 0 and from interpolated solutions.
        tolerance, max_iterations: stopping criteria, as for `lbfgs.solve`.
    """
    logs, zero = penalties.log().tolist(), images.mean.new_zeros(images.classes, images.width)
    plain = Preconditioner(images.second_moment(zero), 1.0)
    everything = list(range(len(logs)))
    together = max(1, images.plan.state // state_bytes(zero.numel() * zero.element_size()))
    done: dict[int, Optimum] = {}
    first = max(1, FIRST_ROWS // images.classes)
    order = levels(len(logs), first) if start is None else [everything]
    for level in order:
        for part in torch.tensor(level).split(together):
            part, known = part.tolist(), {logs[i]: row for i, row in done.items()}
            if start is not None:
                v, preconditioners = start[part], [plain] * len(part)
            elif not known:
                v, preconditioners = zero.expand(len(part), -1, -1), [plain] * len(part)
            else:
                vs = {at: row.v for at, row in known.items()}
                v = torch.stack([interpolate(logs[i], vs) for i in part])
                preconditioners = [known[_nearest(known, logs[i])].preconditioner for i in part]
            found = solve(images, penalties[part], v, preconditioners, tolerance, max_iterations)
            # No other penalty uses the preconditioners of the last level, half of all penalties.
            kept = [plain] * len(part) if level is order[-1] else found.preconditioners
            rows = zip(
                found.v,
                found.objective,
                images.gradient_norm(found.gradient),
                found.iterations,
                found.converged,
                kept,
                strict=True,
            )
            done.update(zip(part, (Optimum(*row) for row in rows), strict=True))
    return [done[i] for i in everything]
