"""Preconditioned L-BFGS for many convex problems at once, each with a metric of its own.

All problems are evaluated together, once per iteration: one that accepts its trial point moves on,
another halves its step, and those that have converged leave the batch.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

MEMORY = 10  # pairs that L-BFGS remembers
ARMIJO = 1e-4  # share of the promised decrease that a step must bring
SHORTEST = 1e-12  # a step below this finds nothing but rounding


class Metric:
    """A preconditioner: the inverse of mass * (moment + ratio * I), bias (last) unpenalised. Along
    the path, moment and ratio change slowly, so that neighbours can share all but the mass.

    Args:
        moment: `(D, D)` float32, as `logistic.Images.second_moment` returns.
        ratio: penalty over the mass, which is the sum of the images' weights in the moment.
    """

    def __init__(self, moment: Tensor, ratio: float):
        self.moment, self.ratio = moment, ratio
        matrix, ridge = moment.clone(), torch.full_like(moment[0], ratio)
        ridge[-1] = 0
        matrix.diagonal().add_(ridge)
        # What rounding may have taken from positive definiteness is given back; rarely more.
        share, failed = 100 * torch.finfo(moment.dtype).eps, True
        while failed:
            matrix.diagonal().mul_(1 + share)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            share *= 10
        self.inverse = torch.cholesky_inverse(factor)

    def near(self, ratio: float) -> bool:
        """Whether a metric with that ratio would hardly be better."""
        return 0.25 < ratio / self.ratio < 4

    def apply(self, g: Tensor, mass: float) -> Tensor:
        """g: `(..., D)` -> the same shape, scaled as the inverse Hessian at that mass."""
        return (g.float() @ self.inverse).to(g.dtype) / mass


class Pairs:
    """What L-BFGS remembers: steps s, changes y of the gradient, and z = metric applied to y.

    Applies the inverse Hessian in the compact form of Byrd, Nocedal and Schnabel (1994, eq. 3.1):
    few large products instead of many small ones. A problem that rejected a step has zeros there.

    Args:
        like: `(P, K, D)`, the shape of the unknowns.
    """

    def __init__(self, like: Tensor):
        size = len(like), MEMORY, like[0].numel()
        self.s, self.y, self.z = (like.new_zeros(size) for _ in range(3))
        # Products s_i y_j, where i is not younger than j, and y_i z_j.
        self.sy, self.yz = (like.new_zeros(len(like), MEMORY, MEMORY) for _ in range(2))
        self.gamma = like.new_ones(len(like))  # scale of the metric
        self.next = 0  # the oldest pair, which makes room

    def keep(self, rows: Tensor) -> None:
        """Forget the problems that are not in rows `(Q,)` int64."""
        for name in ("s", "y", "z", "sy", "yz", "gamma"):
            setattr(self, name, getattr(self, name)[rows])

    def add(self, s: Tensor, y: Tensor, z: Tensor, accepted: Tensor) -> None:
        """s, y, z: `(P, K, D)`; accepted: `(P,)` bool, whose pairs count."""
        s, y, z = s.flatten(1), y.flatten(1), z.flatten(1)
        sy, yz = (s * y).sum(1), (y * z).sum(1)
        accepted = accepted & (sy > 0) & (yz > 0)
        for store, new in ((self.s, s), (self.y, y), (self.z, z)):
            store[:, self.next] = torch.where(accepted[:, None], new, 0)
        self.gamma = torch.where(accepted, sy / yz, self.gamma)
        self.next = (self.next + 1) % MEMORY

    def renew(self, row: int, metric: Metric, mass: float) -> None:
        """The problem in that row has got another metric."""
        y = self.y[row]
        self.z[row] = metric.apply(y.view(MEMORY, -1, len(metric.moment)), mass).view_as(y)
        self.yz[row] = y @ self.z[row].mT
        sy, yz = (self.s[row] * y).sum(1), self.yz[row].diagonal()
        newest = [i % MEMORY for i in range(self.next - 1, self.next - 1 - MEMORY, -1)]
        self.gamma[row] = next((sy[i] / yz[i] for i in newest if sy[i] > 0 and yz[i] > 0), 1.0)

    def times(self, g: Tensor, mg: Tensor) -> Tensor:
        """Inverse Hessian times g. mg is the metric applied to g; all `(P, K, D)`."""
        order = [(self.next + i) % MEMORY for i in range(MEMORY)]  # oldest first
        back = [order.index(i) for i in range(MEMORY)]
        gamma, newest = self.gamma[:, None, None], order[-1]
        columns = torch.stack([self.y[:, newest], g.flatten(1)], 2)
        by_s, by_z = self.s @ columns, self.z @ columns
        self.sy[:, :, newest] = by_s[..., 0]
        self.yz[:, :, newest] = self.yz[:, newest] = by_z[..., 0]
        sy, yz = (product[:, order][:, :, order] for product in (self.sy, self.yz))
        sg, zg = by_s[:, order, 1:], by_z[:, order, 1:]
        diagonal = sy.diagonal(dim1=1, dim2=2)
        # Empty rows: any number there will do, for all else in them is 0.
        r = sy.triu(1) + torch.diag_embed(torch.where(diagonal > 0, diagonal, 1))
        a = torch.linalg.solve_triangular(r, sg, upper=True)
        right = diagonal[..., None] * a + gamma * (yz @ a - zg)
        u = torch.linalg.solve_triangular(r.mT, right, upper=False)
        change = self.s.mT @ u[:, back] - gamma * (self.z.mT @ a[:, back])
        return gamma * mg + change.view_as(g)


@dataclass
class State:
    """Of P problems that are still being solved."""

    penalties: Tensor  # (P,)
    v: Tensor  # (P, K, D)
    f: Tensor  # (P,) float64
    g: Tensor  # (P, K, D)
    mass: Tensor  # (P,) float64
    mg: Tensor  # metric applied to g
    step: Tensor  # (P,) float64; the next one to be tried

    def rows(self, rows: Tensor) -> "State":
        """A choice of problems `(Q,)` int64."""
        return State(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass
class Solution:
    """Of P problems, on return in their order.

    Attributes:
        v: `(P, K, D)` unknowns; gradient: likewise.
        objective: `(P,)` float64.
        iterations, converged: `(P,)`.
        metrics: the last one of each.
    """

    v: Tensor
    objective: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    metrics: list[Metric]


class Batch:
    """One run of `solve`, which has the same arguments."""

    def __init__(self, images: Any, penalties: Tensor, v: Tensor, metrics: list[Metric]):
        self.images, self.active, self.metrics = images, list(range(len(v))), list(metrics)
        f, g, mass = images.objective(v, penalties)
        for row, ratio in enumerate((penalties / mass).tolist()):
            if not metrics[row].near(ratio):
                self.metrics[row] = Metric(metrics[row].moment, ratio)
        self.masses = mass.tolist()  # when the metrics were made
        self.state = State(penalties, v, f, g, mass, self.apply(g), torch.ones_like(f))
        self.pairs = Pairs(v)
        # A new metric costs as much as this many iterations. A third of them is worth waiting for.
        n, width = images.x.shape
        cost = width * (1 + width / n) / (2 * images.classes)
        self.ages, self.patience = [0] * len(v), [max(8, int(cost / 3))] * len(v)
        self.solution = Solution(
            v.clone(),
            f.clone(),
            g.clone(),
            torch.zeros_like(f).long(),
            torch.zeros_like(f).bool(),
            list(self.metrics),
        )

    def apply(self, g: Tensor) -> Tensor:
        """Each problem's metric to its gradient `(P, K, D)`."""
        rows = zip(self.metrics, self.masses, g, strict=True)
        return torch.stack([metric.apply(part, mass) for metric, mass, part in rows])

    def renew_old_metrics(self) -> None:
        """The weights of the images change on the way; later, they do so more slowly."""
        for row in range(len(self.active)):
            self.ages[row] += 1
            if self.ages[row] <= self.patience[row]:
                continue
            state, self.ages[row] = self.state, 0
            self.patience[row] *= 2
            self.masses[row] = mass = state.mass[row].item()
            ratio = state.penalties[row].item() / mass
            metric = Metric(self.images.second_moment(state.v[row]), ratio)
            self.metrics[row], state.mg[row] = metric, metric.apply(state.g[row], mass)
            self.pairs.renew(row, metric, mass)

    def advance(self, direction: Tensor, slope: Tensor) -> None:
        """Try one point for each problem; a backtracking line search, spread over iterations."""
        s = self.state
        move = s.step.to(s.v.dtype)[:, None, None] * direction
        f, g, mass = self.images.objective(s.v + move, s.penalties)
        slack = 10 * torch.finfo(s.v.dtype).eps * s.f.abs()
        accepted = f <= s.f + ARMIJO * s.step * slope + slack
        mg = self.apply(g)
        self.pairs.add(move, g - s.g, mg - s.mg, accepted)
        # The minimum of the parabola through both values, within reason.
        shorter = (-slope * s.step.square() / (2 * (f - s.f - slope * s.step))).nan_to_num(0, 0, 0)
        shorter = shorter.clamp(0.1 * s.step, 0.5 * s.step)
        mask = accepted[:, None, None]
        self.state = State(
            s.penalties,
            torch.where(mask, s.v + move, s.v),
            torch.where(accepted, f, s.f),
            torch.where(mask, g, s.g),
            torch.where(accepted, mass, s.mass),
            torch.where(mask, mg, s.mg),
            torch.where(accepted, 1, shorter),
        )

    def leave(self, finished: Tensor, converged: Tensor, iteration: int) -> Tensor:
        """Note down those that are finished; returns the rows of the others."""
        s, out = self.state, self.solution
        for row in finished.nonzero().flatten().tolist():
            i = self.active[row]
            out.v[i], out.objective[i], out.gradient[i] = s.v[row], s.f[row], s.g[row]
            out.iterations[i], out.converged[i] = iteration, converged[row]
            out.metrics[i] = self.metrics[row]
        rows = (~finished).nonzero().flatten()
        for name in ("active", "metrics", "masses", "ages", "patience"):
            setattr(self, name, [getattr(self, name)[row] for row in rows.tolist()])
        self.state = s.rows(rows)
        self.pairs.keep(rows)
        return rows


def solve(
    images: Any,
    penalties: Tensor,
    v: Tensor,
    metrics: list[Metric],
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Minimise from v until half the squared gradient norm, in the metric of the inverse Hessian as
    L-BFGS knows it, is at most tolerance * objective: an estimate of what is left to gain.

    Args:
        images: a `logistic.Images`.
        penalties: `(P,)` float64.
        v: `(P, K, D)`.
        metrics: one of each, from any similar problem.
    """
    batch = Batch(images, penalties, v, metrics)
    for iteration in range(max_iterations + 1):
        batch.renew_old_metrics()
        s = batch.state
        direction = -batch.pairs.times(s.g, s.mg)
        slope = (direction * s.g).sum((1, 2), dtype=torch.float64)
        converged = -slope / 2 <= tolerance * s.f
        finished = converged | (s.step < SHORTEST) | (iteration == max_iterations)
        if finished.any():
            rows = batch.leave(finished, converged, iteration)
            direction, slope = direction[rows], slope[rows]
        if not batch.active:
            break
        batch.advance(direction, slope)
    assert not batch.active and batch.solution.objective.isfinite().all()
    return batch.solution
