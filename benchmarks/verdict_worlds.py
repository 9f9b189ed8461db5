"""Simulated studies with a known truth: the worlds of benchmarks/verdicts.py.

An image is classified correctly if a latent number is below a threshold. The latent number is the
sum of three difficulties of the image: for all networks (70 % of the variance), for one network
(15 %) and for one trial (15 %). The threshold varies with the seed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy import special

from classification.report import estimates
from classification.report.verdicts import Estimate

SHARED, OWN, NOISE = np.sqrt(np.array([0.7, 0.15, 0.15], np.float32))
BASE = 0.8  # accuracy of the standard networks
CLASS_SIZES = (1, 3, 5, 7, 9)  # 5 images a class on average
# Standard deviation over seeds of a robust and of a standard network, points.
SCATTER = {
    "1": (1.0, 1.0),
    "3": (0.5, 1.5),
    "6": (0.5, 3.0),
    "10": (0.5, 5.0),
    "reversed": (5.0, 0.5),
}
MOST_TRIALS = 40  # limit for advised additional trials

# Levels of the factors of a world. "fixed": one trial of runs without a seed.
LEVELS = {
    "sides": ((1, 1), (4, 1), (9, 1), (36, 4)),
    "trials": (1, "fixed", 3, 10),
    "ratio": tuple(SCATTER),
    "images": (200, 1000, 4000),
    "metric": ("top-1", "per class"),
    "predictions": (True, False),
    "tails": ("normal", "heavy"),
    "looks": (1, 3),
}


@dataclass(frozen=True)
class World:
    """One row of the table of simulations.

    Attributes:
        sides: numbers of robust and of standard networks, all equally good on their side.
        trials: trials of each network at the first look; `"fixed"`: one, of runs without a seed.
        ratio: key of `SCATTER`.
        images: number of test images.
        metric: `"top-1"` or `"per class"`, the mean over classes of 1 to 9 images.
        predictions: whether per-image predictions are available.
        tails: distribution over seeds: `"normal"` or `"heavy"` (Student's t, 3 degrees of freedom).
        looks: largest number of looks; the advised trials are added after each.
        gain: true difference, robust minus standard, points.
        worse: points by which the other networks of a side are worse than its first, for the robust
            and the standard side.
    """

    sides: tuple[int, int] = (1, 1)
    trials: int | str = 3
    ratio: str = "1"
    images: int = 1000
    metric: str = "top-1"
    predictions: bool = True
    tails: str = "normal"
    looks: int = 1
    gain: float = 0.0
    worse: tuple[float, float] = (0.0, 0.0)

    @property
    def fixed(self) -> bool:
        return self.trials == "fixed"

    @property
    def first(self) -> int:
        """Number of trials at the first look."""
        return 1 if isinstance(self.trials, str) else self.trials

    @property
    def possible(self) -> bool:
        """Whether the levels can be combined and the arrays stay small."""
        several = self.looks > 1
        return not (
            (self.fixed and not self.predictions)
            or (several and self.first == 1)
            or (several and self.sides == (36, 4) and self.images > 200)
            or (several and self.images > 1000)
        )

    def cells(self) -> list[str]:
        """Cells of a Markdown row, below `HEADS`."""
        differ = "{:g} and {:g}".format(*self.worse) if any(self.worse) else "no"
        return [
            "{} v {}".format(*self.sides),
            differ,
            str(self.trials),
            self.ratio,
            str(self.images),
            self.metric,
            "yes" if self.predictions else "none",
            self.tails,
            str(self.looks),
        ]


def table(worlds: int, seed: int = 0) -> list[World]:
    """A designed subset of all combinations. Each next world has the most pairs of levels that are
    rare so far."""
    every = [World(*levels) for levels in itertools.product(*LEVELS.values())]
    every = [world for world in every if world.possible]
    np.random.default_rng(seed).shuffle(every)
    count: dict[tuple, int] = {}

    def pairs(world: World) -> list[tuple]:
        levels = [(f.name, str(getattr(world, f.name))) for f in fields(World)[: len(LEVELS)]]
        return list(itertools.combinations(levels, 2))

    chosen: list[World] = []
    for _ in range(worlds):
        best = max(every, key=lambda w: sum(1 / (1 + count.get(p, 0)) for p in pairs(w)))
        chosen.append(best)
        every.remove(best)
        for pair in pairs(best):
            count[pair] = count.get(pair, 0) + 1
    return chosen


HEADS = [
    "sides",
    "networks differ by",
    "trials",
    "sd ratio",
    "images",
    "metric",
    "predictions",
    "seeds",
    "looks",
]
# Worlds whose sides have equally good best networks and worse other networks.
MORE = [
    World(sides=(9, 1), worse=(1, 0)),
    World(sides=(9, 1), worse=(1, 0), trials=10),
    World(sides=(9, 1), worse=(3, 0)),
    World(sides=(9, 1), worse=(2, 0), trials="fixed"),
    World(sides=(9, 1), worse=(1, 0), predictions=False),
    World(sides=(36, 4), worse=(0, 2)),
    World(sides=(36, 4), worse=(0, 2), trials="fixed"),
    World(sides=(36, 4), worse=(0, 1), predictions=False),
]


class Study:
    """One draw of a world; `grow` adds trials."""

    def __init__(self, world: World, rng: np.random.Generator):
        self.world, self.rng = world, rng
        self.rows: list[np.ndarray] = []
        n, networks = world.images, sum(world.sides)
        self.latent = SHARED * rng.standard_normal(n, dtype=np.float32)
        self.latent = self.latent + OWN * rng.standard_normal((networks, n), dtype=np.float32)

    @cached_property
    def labels(self) -> np.ndarray | None:
        if self.world.metric == "top-1":
            return None
        sizes = np.resize(CLASS_SIZES, -(-self.world.images // 5))
        return np.repeat(np.arange(len(sizes)), sizes)[: self.world.images]

    @cached_property
    def levels(self) -> np.ndarray:
        """Expected accuracy of each network, `(networks, 1)`."""
        robust, standard = self.world.sides
        levels = np.full(robust + standard, BASE)
        levels[:robust] += self.world.gain / 100
        levels[1:robust] -= self.world.worse[0] / 100
        levels[robust + 1 :] -= self.world.worse[1] / 100
        return levels[:, None]

    @cached_property
    def scatter(self) -> np.ndarray:
        """Standard deviation over seeds, `(networks, 1)`; none for runs without a seed."""
        found = np.repeat(SCATTER[self.world.ratio], self.world.sides)[:, None] / 100
        return 0 * found if self.world.fixed else found

    def seeds(self, trials: int) -> np.ndarray:
        """Expected accuracies given the seeds, `(networks, trials)`."""
        shape = (sum(self.world.sides), trials)
        if self.world.tails == "heavy":
            z = self.rng.standard_t(3, shape) / np.sqrt(3)
        else:
            z = self.rng.standard_normal(shape)
        return np.clip(self.levels + self.scatter * z, 0.02, 0.995)

    def grow(self, trials: int) -> None:
        """Bring the number of trials of each network to `trials`."""
        new = trials - sum(row.shape[1] for row in self.rows)
        level = self.seeds(new)
        if not self.world.predictions and self.world.sides == (1, 1):
            # The verdict is about this test set. Binomial noise represents its images.
            noise = 0.2 / np.sqrt(self.world.images) * self.rng.standard_normal(level.shape)
            self.rows.append(level + noise)
            return
        threshold = special.ndtri(level).astype(np.float32)[..., None]
        shape = (*level.shape, self.world.images)
        latent = self.latent[:, None] + NOISE * self.rng.standard_normal(shape, dtype=np.float32)
        self.rows.append(latent < threshold)

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        right = np.concatenate(self.rows, axis=1)
        return right[: self.world.sides[0]], right[self.world.sides[0] :]

    @property
    def accuracies(self) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies of both sides, percent, `(networks, trials)` each."""
        weights = 1 / self.world.images
        if self.labels is not None:
            counts = np.bincount(self.labels)
            weights = 1 / (len(counts) * counts[self.labels])
        found = [side if side.ndim == 2 else (side * weights).sum(2) for side in self.sides]
        return 100 * found[0], 100 * found[1]

    @property
    def estimate(self) -> Estimate:
        if self.world.predictions:
            fixed = (self.world.fixed, self.world.fixed)
            return estimates.from_predictions(*self.sides, self.labels, fixed=fixed)
        return estimates.from_accuracies(*self.accuracies, self.world.images)
