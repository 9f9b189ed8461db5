"""Preconditioned L-BFGS for a batch of convex problems, each with its own preconditioner.

All problems are evaluated together, once per iteration. A problem that accepts its trial point
moves to that point. A problem that rejects its trial point shortens its step. Converged problems
leave the batch.

Shapes: P problems with K classes and D unknowns per class; the last unknown is the bias.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

MEMORY = 10  # number of (step, gradient change) pairs that L-BFGS stores
ARMIJO = 1e-4  # fraction of the predicted decrease that a step must reach
SHORTEST = 1e-12  # below this step size, the objective changes only by rounding errors


def patience(width: int, images: int, classes: int) -> int:
    """Return the number of iterations before a preconditioner is first renewed.

    A new preconditioner for `width` unknowns per class costs as much as three times as many
    iterations.
    """
    return max(8, int(width * (1 + width / images) / (6 * classes)))


class Preconditioner:
    """Inverse of mass * (moment + ratio * I), where I has a 0 for the bias, which has no penalty.

    Along a path of penalties, moment and ratio change slowly. Problems with similar penalties can
    therefore share the preconditioner except for the mass.

    Args:
        moment: weighted second moment `(D, D)` float32, from `logistic.Images.second_moment`.
        ratio: penalty divided by the mass. The mass is the sum of the images' weights.
    """

    def __init__(self, moment: Tensor, ratio: float):
        self.moment, self.ratio = moment, ratio
        matrix, ridge = moment.clone(), torch.full_like(moment[0], ratio)
        ridge[-1] = 0
        matrix.diagonal().add_(ridge)
        # Rounding can make the matrix indefinite. Increase the diagonal until Cholesky succeeds.
        share, failed = 100 * torch.finfo(moment.dtype).eps, True
        while failed:
            matrix.diagonal().mul_(1 + share)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            share *= 10
        self.inverse = torch.cholesky_inverse(factor)

    def near(self, ratio: float) -> bool:
        """Return whether a new preconditioner for this ratio would be only slightly better."""
        return 0.25 < ratio / self.ratio < 4

    def apply(self, g: Tensor, mass: float) -> Tensor:
        """Multiply g `(..., D)` by the preconditioner with this mass."""
        return (g.float() @ self.inverse).to(g.dtype) / mass


class Pairs:
    """Pairs that L-BFGS stores: steps s, gradient changes y, and z = preconditioner times y.

    The inverse Hessian is applied in the compact form of Byrd, Nocedal and Schnabel (1994, eq.
    3.1), which needs only a few large matrix products. A problem that rejects a step stores zeros.

    Args:
        like: tensor `(P, K, D)` with the shape of the unknowns.
    """

    def __init__(self, like: Tensor):
        size = len(like), MEMORY, like[0].numel()
        self.s, self.y, self.z = (like.new_zeros(size) for _ in range(3))
        # Products s_i y_j, for pairs i that are not newer than pair j, and products y_i z_j.
        self.sy, self.yz = (like.new_zeros(len(like), MEMORY, MEMORY) for _ in range(2))
        self.gamma = like.new_ones(len(like))  # scale of the preconditioner
        self.next = 0  # index of the oldest pair, which the next pair replaces

    def keep(self, rows: Tensor) -> None:
        """Drop all problems except those in rows `(Q,)` int64."""
        for name in ("s", "y", "z", "sy", "yz", "gamma"):
            setattr(self, name, getattr(self, name)[rows])

    def add(self, s: Tensor, y: Tensor, z: Tensor, accepted: Tensor) -> None:
        """Store a pair for each problem.

        Args:
            s: steps `(P, K, D)`.
            y: gradient changes `(P, K, D)`.
            z: preconditioner times y, `(P, K, D)`.
            accepted: whether each problem accepted its step, `(P,)` bool. The other problems store
                zeros.
        """
        s, y, z = s.flatten(1), y.flatten(1), z.flatten(1)
        sy, yz = (s * y).sum(1), (y * z).sum(1)
        accepted = accepted & (sy > 0) & (yz > 0)
        for store, new in ((self.s, s), (self.y, y), (self.z, z)):
            store[:, self.next] = torch.where(accepted[:, None], new, 0)
        self.gamma = torch.where(accepted, sy / yz, self.gamma)
        self.next = (self.next + 1) % MEMORY

    def renew(self, row: int, preconditioner: Preconditioner, mass: float) -> None:
        """Recompute z for the problem in this row with a new preconditioner."""
        y = self.y[row]
        self.z[row] = preconditioner.apply(
            y.view(MEMORY, -1, len(preconditioner.moment)), mass
        ).view_as(y)
        self.yz[row] = y @ self.z[row].mT
        sy, yz = (self.s[row] * y).sum(1), self.yz[row].diagonal()
        newest = [i % MEMORY for i in range(self.next - 1, self.next - 1 - MEMORY, -1)]
        self.gamma[row] = next((sy[i] / yz[i] for i in newest if sy[i] > 0 and yz[i] > 0), 1.0)

    def times(self, g: Tensor, mg: Tensor) -> Tensor:
        """Multiply g `(P, K, D)` by the approximate inverse Hessian.

        Args:
            g: gradients `(P, K, D)`.
            mg: preconditioner times g, `(P, K, D)`.
        """
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
        # Rows without a pair contain only zeros, so any nonzero diagonal entry works.
        r = sy.triu(1) + torch.diag_embed(torch.where(diagonal > 0, diagonal, 1))
        a = torch.linalg.solve_triangular(r, sg, upper=True)
        right = diagonal[..., None] * a + gamma * (yz @ a - zg)
        u = torch.linalg.solve_triangular(r.mT, right, upper=False)
        change = self.s.mT @ u[:, back] - gamma * (self.z.mT @ a[:, back])
        return gamma * mg + change.view_as(g)


@dataclass
class State:
    """State of the P problems that have not converged."""

    penalties: Tensor  # (P,)
    v: Tensor  # (P, K, D)
    f: Tensor  # (P,) float64
    g: Tensor  # (P, K, D)
    mass: Tensor  # (P,) float64
    mg: Tensor  # preconditioner times g, (P, K, D)
    step: Tensor  # (P,) float64; the next step size to try

    def rows(self, rows: Tensor) -> "State":
        """Select the problems in rows `(Q,)` int64."""
        return State(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass
class Solution:
    """Solutions of P problems.

    Attributes:
        v: unknowns `(P, K, D)`.
        objective: values of the objective `(P,)`, float64.
        gradient: gradients `(P, K, D)`.
        iterations: numbers of iterations `(P,)`, int64.
        converged: whether each problem converged, `(P,)` bool.
        preconditioners: last preconditioner of each problem.
    """

    v: Tensor
    objective: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    preconditioners: list[Preconditioner]


class Batch:
    """State of one call of `solve`, with the same arguments."""

    def __init__(
        self, images: Any, penalties: Tensor, v: Tensor, preconditioners: list[Preconditioner]
    ):
        self.images, self.active, self.preconditioners = (
            images,
            list(range(len(v))),
            list(preconditioners),
        )
        f, g, mass = images.objective(v, penalties)
        for row, ratio in enumerate((penalties / mass).tolist()):
            if not preconditioners[row].near(ratio):
                self.preconditioners[row] = Preconditioner(preconditioners[row].moment, ratio)
        self.masses = mass.tolist()  # masses of the preconditioners
        self.state = State(penalties, v, f, g, mass, self.apply(g), torch.ones_like(f))
        self.pairs = Pairs(v)
        iterations = patience(images.width, len(images.y), images.classes)
        self.ages, self.patience = [0] * len(v), [iterations] * len(v)
        self.solution = Solution(
            v.clone(),
            f.clone(),
            g.clone(),
            torch.zeros_like(f).long(),
            torch.zeros_like(f).bool(),
            list(self.preconditioners),
        )

    def apply(self, g: Tensor) -> Tensor:
        """Multiply each gradient `(P, K, D)` by its problem's preconditioner."""
        rows = zip(self.preconditioners, self.masses, g, strict=True)
        return torch.stack(
            [preconditioner.apply(part, mass) for preconditioner, mass, part in rows]
        )

    def renew_old_preconditioners(self) -> None:
        """Recompute preconditioners whose image weights are outdated, at growing intervals."""
        for row in range(len(self.active)):
            self.ages[row] += 1
            if self.ages[row] <= self.patience[row]:
                continue
            state, self.ages[row] = self.state, 0
            self.patience[row] *= 2
            self.masses[row] = mass = state.mass[row].item()
            ratio = state.penalties[row].item() / mass
            preconditioner = Preconditioner(self.images.second_moment(state.v[row]), ratio)
            self.preconditioners[row], state.mg[row] = (
                preconditioner,
                preconditioner.apply(state.g[row], mass),
            )
            self.pairs.renew(row, preconditioner, mass)

    def advance(self, direction: Tensor, slope: Tensor) -> None:
        """Try one point for each problem, as one step of a backtracking line search."""
        s = self.state
        move = s.step.to(s.v.dtype)[:, None, None] * direction
        f, g, mass = self.images.objective(s.v + move, s.penalties)
        slack = 10 * torch.finfo(s.v.dtype).eps * s.f.abs()
        accepted = f <= s.f + ARMIJO * s.step * slope + slack
        mg = self.apply(g)
        self.pairs.add(move, g - s.g, mg - s.mg, accepted)
        # The shorter step minimizes the parabola that fits both values and the slope. Its length is
        # limited to 0.1 to 0.5 of the step.
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
        """Move the finished problems to the solution, and return the rows of the other problems."""
        s, out = self.state, self.solution
        for row in finished.nonzero().flatten().tolist():
            i = self.active[row]
            out.v[i], out.objective[i], out.gradient[i] = s.v[row], s.f[row], s.g[row]
            out.iterations[i], out.converged[i] = iteration, converged[row]
            out.preconditioners[i] = self.preconditioners[row]
        rows = (~finished).nonzero().flatten()
        for name in ("active", "preconditioners", "masses", "ages", "patience"):
            setattr(self, name, [getattr(self, name)[row] for row in rows.tolist()])
        self.state = s.rows(rows)
        self.pairs.keep(rows)
        return rows


def solve(
    images: Any,
    penalties: Tensor,
    v: Tensor,
    preconditioners: list[Preconditioner],
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Minimize each problem until the estimated remaining decrease is small.

    The estimate is half the squared norm of the gradient in the metric of the approximate inverse
    Hessian. A problem has converged when the estimate is at most tolerance * objective.

    Args:
        images: object with the objective, a `logistic.Images`.
        penalties: penalties `(P,)`, float64.
        v: initial unknowns `(P, K, D)`.
        preconditioners: preconditioner for each problem, possibly from a similar problem.
        tolerance: estimated relative decrease at which a problem has converged.
        max_iterations: maximum number of iterations, >= 0.
    """
    batch = Batch(images, penalties, v, preconditioners)
    for iteration in range(max_iterations + 1):
        batch.renew_old_preconditioners()
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
