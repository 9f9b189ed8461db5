"""Multinomial logistic regression over a path of L2 penalties, all of them in one computation.

For each penalty: minimise sum over images of cross entropy + penalty / 2 * |weights|^2; the bias is
free. Preconditioned L-BFGS, batched over penalties: one matrix product serves them all, and those
that have converged drop out. Penalties are solved in levels, from few, far apart, to all; each
level begins where its neighbours on the path say (`levels`, `interpolate`).

The preconditioner is the Hessian with one weight per image for all classes, (1 - sum p^2) / (K - 1):
the mean of the nonzero eigenvalues of that image's K x K part. Unlike a bound on the Hessian (Böhning 1992) it
shrinks with the probabilities, as it must at weak penalties, where nearly all images are fitted.
"""  # fmt: skip

from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 10  # pairs that L-BFGS remembers
ARMIJO = 1e-4
FIRST_LEVEL = 8  # every eighth penalty is solved first
CHUNK = 2**20  # logits of one slice of images: small enough for a CPU's cache
STATE_BYTES = 2**31  # of what L-BFGS remembers; penalties beyond that wait for the next batch


class Images:
    """Features in the coordinates of the solver: centred, a last column of ones, at most n + 1 wide.

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
        """Objective `(P,)` float64, gradient `(P, K, D)`, and the sum of the images' weights `(P,)`."""
        size, (count, classes, width) = len(self.x), v.shape
        flat, gradient = v.reshape(-1, width), torch.zeros_like(v).view(-1, width)
        value, mass = v.new_zeros(2, count, dtype=torch.float64)
        for rows in torch.arange(size, device=v.device).split(max(64, CHUNK // len(flat))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            x = self.x[part]
            p, loss = _softmax((flat @ x.T).view(count, classes, -1), self.y[part])
            value += loss.sum(1, dtype=torch.float64)
            # Of the residuals p - [k = y]: cheaper than from p, and equal where it matters.
            own = p.gather(1, self.y[part].expand(count, 1, -1))[:, 0]
            others = p.square().sum(1) - own.square()
            mass += (-own * (2 + own) - others).sum(1, dtype=torch.float64)
            gradient.addmm_(p.view(len(flat), -1), x)
        gradient = gradient.view_as(v)
        value += penalties.double() / 2 * v[..., :-1].square().sum((1, 2), dtype=torch.float64)
        gradient[..., :-1] += penalties[:, None, None] * v[..., :-1]
        return value, gradient, (mass / (classes - 1)).clamp_min(torch.finfo(v.dtype).tiny)

    def second_moment(self, v: Tensor) -> Tensor:
        """`(D, D)`: mean of x x^T over images, weighted as in the preconditioner. v: `(K, D)`."""
        p, _ = _softmax((v @ self.x.T)[None], self.y)
        own = p[0].gather(0, self.y[None])[0]
        weights = -own * (2 + own) - (p[0].square().sum(0) - own.square())
        weights = weights.clamp_min(0) / weights.sum().clamp_min(torch.finfo(v.dtype).tiny)
        return (self.x * weights[:, None]).T @ self.x


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


class Metric:
    """The preconditioner of one penalty: the inverse of mass * moment + penalty, bias unpenalised.

    Args:
        moment: as `Images.second_moment` returns; may be that of a neighbour on the path.
        mass: sum of the images' weights, which tells its scale.
    """

    def __init__(self, moment: Tensor, mass: float, penalty: float):
        self.moment, self.mass, self.age = moment, mass, 0
        matrix = mass * moment
        ridge = torch.full_like(moment[0], penalty)
        ridge[-1] = 0
        # What rounding takes from positive definiteness is given back.
        diagonal = matrix.diagonal()
        diagonal += ridge + 100 * torch.finfo(moment.dtype).eps * (diagonal.mean() + ridge)
        factor = torch.linalg.cholesky_ex(matrix)[0]
        self.inverse = torch.cholesky_inverse(factor)

    def __call__(self, g: Tensor) -> Tensor:
        """g: `(..., D)` -> the same shape."""
        return g @ self.inverse


@dataclass
class Solution:
    """Of P penalties, in the solver's coordinates; tensors over penalties `(P, ...)`."""

    v: Tensor
    objective: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    moments: list


def levels(count: int) -> list[list[int]]:
    """Positions on a path of `count` penalties, in the order of solving: every eighth and the last,
    then those halfway between, and so on.

    >>> levels(6)
    [[0, 5], [4], [2], [1, 3]]
    """
    found, step = [sorted({*range(0, count, FIRST_LEVEL), count - 1})], FIRST_LEVEL
    while step > 1:
        step //= 2
        seen = {i for level in found for i in level}
        found.append([i for i in range(0, count, step) if i not in seen])
    return [level for level in found if level]


def interpolate(at: float, known: list[float], values: list[Tensor]) -> Tensor:
    """The polynomial through the (up to four) nearest known points: known log-penalties -> values."""
    near = sorted(range(len(known)), key=lambda i: abs(known[i] - at))
    left = [i for i in near if known[i] < at][:2]
    right = [i for i in near if known[i] > at][:2]
    if not left or not right:
        return values[near[0]].clone()
    points, result = left + right, 0
    for i in points:
        factor = 1.0
        for j in points:
            if j != i:
                factor *= (at - known[j]) / (known[i] - known[j])
        result = result + factor * values[i]
    return result


def solve_path(images: Images, penalties: Tensor, start: Tensor | None, tolerance: float,
               max_iterations: int) -> Solution:  # fmt: skip
    """All penalties `(P,)`, ascending and distinct; start: `(P, K, D)`, or None for a path of ours."""
    count, logs = len(penalties), penalties.double().log().tolist()
    zero = images.x.new_zeros(images.classes, images.x.shape[1])
    first = images.second_moment(zero)
    v = [None] * count if start is None else list(start)
    done: dict[int, list] = {}
    order = levels(count) if start is None else [list(range(count))]
    for level in order:
        known = sorted(done)
        for i in level:
            if start is None:
                v[i] = zero if not known else interpolate(
                    logs[i], [logs[j] for j in known], [done[j][0] for j in known])  # fmt: skip
        moments = [
            done[min(known, key=lambda j: abs(logs[j] - logs[i]))][-1] if known else first  # noqa: B023
            for i in level
        ]
        size = 3 * MEMORY + 8
        group = max(1, STATE_BYTES // (size * zero.numel() * zero.element_size()))
        for begin in range(0, len(level), group):
            part = level[begin : begin + group]
            found = solve(images, penalties[part], torch.stack([v[i] for i in part]),
                          moments[begin : begin + group], tolerance, max_iterations)  # fmt: skip
            for row, i in enumerate(part):
                done[i] = [found.v[row], found.objective[row], found.gradient[row],
                           found.iterations[row], found.converged[row], found.moments[row]]  # fmt: skip
    columns = list(zip(*(done[i] for i in range(count)), strict=True))
    return Solution(*(torch.stack(column) for column in columns[:-1]), list(columns[-1]))


def solve(images: Images, penalties: Tensor, v: Tensor, moments: list[Tensor], tolerance: float,
          max_iterations: int) -> Solution:  # fmt: skip
    """Batched L-BFGS from v `(P, K, D)`."""
    f, g, mass = images.objective(v, penalties)
    count = len(v)
    final = Solution(v.clone(), f.clone(), g.clone(), torch.zeros(count, dtype=torch.int64),
                     torch.zeros(count, dtype=torch.bool), list(moments))  # fmt: skip
    active, n, width = list(range(count)), *images.x.shape
    metrics = [Metric(m, float(a), float(p)) for m, a, p in zip(moments, mass, penalties)]
    # Iterations that cost as much as a new metric; it is worth waiting for a part of them.
    patience = [max(8, int(width * (1 + width / n) / (6 * images.classes)))] * count
    memory = Pairs(v)
    step = torch.ones_like(f)
    mg = torch.stack([m(row) for m, row in zip(metrics, g)])
    for iteration in range(max_iterations + 1):
        for row, i in enumerate(active):
            metric = metrics[row]
            metric.age += 1
            drift = abs(float(mass[row].log()) - torch.tensor(metric.mass).log().item())
            metric.stale = drift > 0.7
            if metric.age > patience[row]:
                patience[row] *= 2
                metrics[row] = metric = Metric(images.second_moment(v[row]), float(mass[row]), float(penalties[row]))
                metric.stale = False
                mg[row] = metric(g[row])
                memory.renew(row, metric)
        direction = -memory.times(g, mg)
        slope = (direction * g).sum((1, 2)).double()
        small = -slope / 2 <= tolerance * f
        for row, metric in enumerate(metrics):
            if small[row] and metric.stale:
                small[row] = False
                patience[row] = 0
        stuck = step < 1e-12
        finished = small | stuck
        if iteration == max_iterations:
            finished[:] = True
        if finished.any():
            for row in finished.nonzero().flatten().tolist():
                i = active[row]
                final.v[i], final.objective[i], final.gradient[i] = v[row], f[row], g[row]
                final.iterations[i], final.converged[i] = iteration, small[row]
                final.moments[i] = metrics[row].moment
            keep = (~finished).nonzero().flatten()
            if not len(keep):
                break
            rows = keep.tolist()
            active, metrics, patience = ([c[r] for r in rows] for c in (active, metrics, patience))
            v, f, g, mg, mass, step, penalties, direction, slope = (
                a[keep] for a in (v, f, g, mg, mass, step, penalties, direction, slope))
            memory.keep(keep)
        scaled = step.to(v.dtype)[:, None, None] * direction
        f2, g2, mass2 = images.objective(v + scaled, penalties)
        slack = 10 * torch.finfo(v.dtype).eps * f.abs()
        ok = f2 <= f + ARMIJO * step * slope + slack
        mg2 = torch.stack([m(row) for m, row in zip(metrics, g2)])
        memory.add(scaled, g2 - g, mg2 - mg, ok)
        cut = -slope * step**2 / (2 * (f2 - f - slope * step))
        cut = torch.where(torch.isfinite(cut), cut, 0.1 * step)
        step = torch.where(ok, torch.ones_like(step), torch.minimum(torch.maximum(cut, 0.1 * step), 0.5 * step))
        mask = ok[:, None, None]
        v = torch.where(mask, v + scaled, v)
        g, mg = torch.where(mask, g2, g), torch.where(mask, mg2, mg)
        f, mass = torch.where(ok, f2, f), torch.where(ok, mass2, mass)
    return final


class Pairs:
    """What L-BFGS remembers: steps s, changes y of the gradient, and z = metric times y.

    The inverse Hessian times a vector, in the compact form of Byrd, Nocedal and Schnabel (1994,
    eq. 3.1): few large products instead of many small ones.
    """

    def __init__(self, like: Tensor):
        self.s, self.y, self.z = (like.new_zeros(len(like), MEMORY, like[0].numel()) for _ in range(3))
        self.gamma = like.new_ones(len(like))
        self.next = 0

    def keep(self, rows):
        self.s, self.y, self.z, self.gamma = (a[rows] for a in (self.s, self.y, self.z, self.gamma))

    def renew(self, row, metric):
        shape = (MEMORY, -1, metric.inverse.shape[0])
        self.z[row] = metric(self.y[row].view(shape)).reshape(MEMORY, -1)
        last = (self.next - 1) % MEMORY
        sy, yz = (self.s[row, last] * self.y[row, last]).sum(), (self.y[row, last] * self.z[row, last]).sum()
        self.gamma[row] = sy / yz if sy > 0 and yz > 0 else 1.0

    def add(self, s, y, z, ok):
        s, y, z = (a.flatten(1) for a in (s, y, z))
        sy, yz = (s * y).sum(1), (y * z).sum(1)
        ok = ok & (sy > 0) & (yz > 0)
        for store, a in ((self.s, s), (self.y, y), (self.z, z)):
            store[:, self.next] = torch.where(ok[:, None], a, 0)
        self.gamma = torch.where(ok, sy / yz, self.gamma)
        self.next = (self.next + 1) % MEMORY

    def times(self, g: Tensor, mg: Tensor) -> Tensor:
        shape, g = g.shape, g.flatten(1)[..., None]
        order = [(self.next + i) % MEMORY for i in range(MEMORY)]
        sy = (self.s @ self.y.mT)[:, order][:, :, order]
        yz = (self.y @ self.z.mT)[:, order][:, :, order]
        sg, zg = (self.s @ g)[:, order], (self.z @ g)[:, order]
        diagonal = sy.diagonal(dim1=1, dim2=2)
        r = sy.triu(1) + torch.diag_embed(torch.where(diagonal > 0, diagonal, 1))
        gamma = self.gamma[:, None, None]
        a = torch.linalg.solve_triangular(r, sg, upper=True)
        inner = diagonal[..., None] * a + gamma * (yz @ a) - gamma * zg
        u = torch.linalg.solve_triangular(r.mT, inner, upper=False)
        u, a = u[:, _inverse(order)], a[:, _inverse(order)]
        change = self.s.mT @ u - gamma * (self.z.mT @ a)
        return gamma * mg + change.view(shape)


def _inverse(order):
    return [order.index(i) for i in range(len(order))]
