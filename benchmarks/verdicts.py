"""Error rates of the report's verdicts, in simulated studies with a known truth.

python benchmarks/verdicts.py                  # 68 worlds, 1,000 studies each: about 20 minutes
python benchmarks/verdicts.py --smoke          # about a minute
python benchmarks/verdicts.py --old 4532b7e    # also compares with that commit, on some worlds

A verdict is wrong if it is `better` or `worse` without a difference or in the opposite direction,
or `no difference` with a truth outside the margin. The exit code is 1 if an error rate, a coverage
or a power misses its bound. Only the results are simulated. The verdicts come from the report's own
functions.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import special, stats  # noqa: E402
from verdict_worlds import BASE, HEADS, LEVELS, MORE, MOST_TRIALS, SCATTER, Study, World, table  # noqa: E402

from classification import metrics  # noqa: E402
from classification.report import comparisons, estimates, verdicts  # noqa: E402
from classification.report.verdicts import Outcome, Verdict  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402

# Percent: largest error rate of a family and of a world, smallest coverage.
POOLED, SINGLE, COVERED = 5.0, 6.5, 93.0
GAINS = (1.0, 2.0, 5.0)  # points, for the power
NEAR = 3.0  # margin of the worlds whose truth is just outside it
DIRECTION = {Outcome.BETTER: 1, Outcome.WORSE: -1}


@dataclass
class Count:
    """Numbers of outcomes of simulated studies.

    Attributes:
        studies, wrong, found: numbers of studies, of wrong verdicts and of correct directions.
        given, covered: numbers of intervals and of intervals that contain the truth.
        told: number of studies with each outcome.
    """

    studies: int = 0
    wrong: int = 0
    found: int = 0
    given: int = 0
    covered: int = 0
    told: dict[Outcome, int] = field(default_factory=dict)

    def add(self, verdict: Verdict, truth: float) -> None:
        """Compare a verdict with the true difference, points, and count it."""
        direction = DIRECTION.get(verdict.outcome, 0)
        equal = verdict.outcome is Outcome.NO_DIFFERENCE
        self.studies += 1
        self.wrong += (direction != 0 and direction != np.sign(truth)) or (
            equal and abs(truth) > verdict.margin
        )
        self.found += direction != 0 and direction == np.sign(truth)
        self.told[verdict.outcome] = self.told.get(verdict.outcome, 0) + 1
        if verdict.low is not None:
            self.given += 1
            self.covered += verdict.low <= truth <= verdict.high

    def __add__(self, other: Count) -> Count:
        return Count(
            *(
                getattr(self, n) + getattr(other, n)
                for n in ("studies", "wrong", "found", "given", "covered")
            )
        )


def follow(study: Study, margin: float = verdicts.MARGIN) -> Verdict:
    """The verdict after all looks; each adds the fewest trials that were advised."""
    rules, trials = comparisons.Rules(margin), study.world.first
    for _ in range(study.world.looks):
        study.grow(trials)
        estimate = study.estimate
        verdict = verdicts.judge(estimate, margin=margin, look=rules.look("", estimate))
        if verdict.outcome is not Outcome.CANNOT_TELL or not verdict.needed:
            break
        if not verdict.needed.trials or trials >= MOST_TRIALS:
            break
        trials = min(MOST_TRIALS, max(trials + 1, verdict.needed.trials[0]))
    return verdict


def simulate(world: World, studies: int, seed: int, margin: float = verdicts.MARGIN) -> Count:
    rng, found = np.random.default_rng([seed, *map(ord, repr(world))]), Count()
    for _ in range(studies):
        found.add(follow(Study(world, rng), margin), world.gain)
    return found


def rate(part: int, whole: int) -> str:
    """Percent and Wilson's 95 % interval."""
    if not whole:
        return "-"
    ends = stats.binomtest(part, whole).proportion_ci(method="wilson")
    return f"{100 * part / whole:.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"


def show(title: str, heads: list[str], rows: Iterable[list[str]]) -> None:
    print(f"\n## {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


class Bounds:
    """Collect missed bounds. With `certain`, only a whole interval outside the bound counts."""

    def __init__(self, certain: bool):
        self.certain, self.missed = certain, []

    def at_most(self, name: str, part: int, whole: int, percent: float) -> None:
        if whole and self._end(part, whole, "low") > percent:
            self.missed.append(f"{name}: wrong in {rate(part, whole)} %, bound {percent:g} %")

    def at_least(self, name: str, part: int, whole: int, percent: float) -> None:
        if whole and self._end(part, whole, "high") < percent:
            self.missed.append(f"{name}: {rate(part, whole)} %, bound {percent:g} %")

    def _end(self, part: int, whole: int, end: str) -> float:
        if not self.certain:
            return 100 * part / whole
        return 100 * getattr(stats.binomtest(part, whole).proportion_ci(method="wilson"), end)


def families(found: dict[World, Count]) -> dict[str, Count]:
    """Counts pooled over the worlds that share a level.

    Worlds with one seeded trial always have the verdict `cannot tell`. They count only in their own
    family, because they would lower the other error rates.
    """
    pooled: dict[str, Count] = {}
    told = {world: count for world, count in found.items() if world.trials != 1}
    for name, levels in LEVELS.items():
        for level in levels:
            some = found if (name, level) == ("trials", 1) else told
            own = [count for world, count in some.items() if getattr(world, name) == level]
            label = "{} v {}".format(*level) if name == "sides" else level
            pooled[f"{name} {label}"] = sum(own, Count())
    return pooled | {"all": sum(told.values(), Count())}


def many(task: Callable, items: list, jobs: int) -> list:
    if jobs == 1:
        return list(map(task, items))
    with multiprocessing.Pool(jobs) as pool:
        return pool.map(task, items, chunksize=1)


def worlds_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Measure error rate, coverage and power in the table of worlds."""
    worlds = table(args.worlds) + MORE[: args.worlds]
    errors = partial(simulate, studies=args.studies, seed=1)
    null = dict(zip(worlds, many(errors, worlds, args.jobs), strict=True))
    better = [replace(world, gain=gain) for world in worlds for gain in GAINS]
    power = dict(
        zip(
            better,
            many(partial(simulate, studies=args.studies // 4, seed=2), better, args.jobs),
            strict=True,
        )
    )
    powers = {w: [power[replace(w, gain=g)] for g in GAINS] for w in worlds}
    for world, count in null.items():
        name = " ".join(world.cells())
        bounds.at_most(name, count.wrong, count.studies, SINGLE)
        bounds.at_least(f"{name}: coverage", count.covered, count.given, COVERED)
    show(
        "Worlds without a difference, and power",
        [*HEADS, "wrong, %", "covered, %", *(f"found at {g:g}, %" for g in GAINS)],
        (
            [
                *w.cells(),
                rate(c.wrong, c.studies),
                rate(c.covered, c.given),
                *(f"{100 * p.found / p.studies:.0f}" for p in powers[w]),
            ]
            for w, c in null.items()
        ),
    )
    pooled = families(null)
    for name, count in pooled.items():
        bounds.at_most(f"family {name}", count.wrong, count.studies, POOLED)
    show(
        "Families",
        ["family", "studies", "wrong, %", "covered, %"],
        (
            [n, str(c.studies), rate(c.wrong, c.studies), rate(c.covered, c.given)]
            for n, c in pooled.items()
        ),
    )


MARGINS = [
    World(images=4000, trials=10, gain=NEAR + 0.01),
    World(images=4000, trials="fixed", gain=NEAR + 0.01),
    World(images=1000, trials=10, ratio="3", gain=-NEAR - 0.01, tails="heavy"),
    World(sides=(9, 1), images=4000, trials=10, ratio="3", gain=NEAR + 0.01),
    World(images=1000, trials=3, predictions=False, gain=NEAR + 0.01),
]


def margin_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Count `no difference` with a truth just outside the margin, and without a difference."""
    rows = []
    for world in MARGINS:
        outside = simulate(world, args.studies, 3, NEAR)
        none = simulate(replace(world, gain=0.0), args.studies // 4, 4, NEAR)
        bounds.at_most(f"margin {' '.join(world.cells())}", outside.wrong, outside.studies, SINGLE)
        equal = none.told.get(Outcome.NO_DIFFERENCE, 0)
        rows.append(
            [
                *world.cells(),
                rate(outside.wrong, outside.studies),
                f"{100 * equal / none.studies:.0f}",
            ]
        )
    show(
        f"Truth 0.01 points outside a margin of {NEAR:g}",
        [*HEADS, "wrong, %", "wrong `no difference`, %"],
        rows,
    )


def detectors_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Compare the AP of several robust backbones with a standard one, over runs only."""
    rows, rng = [], np.random.default_rng(5)
    for backbones, runs, (ours, theirs), tails in [
        (1, 3, (0.3, 0.3), "normal"),
        (3, 3, (0.3, 0.3), "normal"),
        (9, 4, (0.3, 0.3), "normal"),
        (3, 3, (0.2, 0.8), "normal"),
        (9, 3, (0.2, 1.0), "normal"),
        (3, 5, (1.0, 0.2), "heavy"),
        (9, 4, (0.2, 0.6), "heavy"),
        (3, 10, (0.2, 0.8), "normal"),
    ]:
        column, covered, given, found = 0, 0, 0, 0
        for _ in range(args.studies):
            draw = rng.standard_normal if tails == "normal" else _heavy(rng)
            standard, robust = theirs * draw((1, runs)), ours * draw((backbones, runs))
            estimate = {
                k: estimates.from_accuracies(50 + row[None], 50 + standard)
                for k, row in enumerate(robust)
            }
            judged = comparisons.judge_all(estimate, comparisons.Rules())
            column += any(v.outcome in DIRECTION for v in judged.values())
            given += backbones
            covered += sum(v.low <= 0 <= v.high for v in judged.values())
            estimate = {k: replace(e, mean=e.mean + 2) for k, e in estimate.items()}
            judged = comparisons.judge_all(estimate, comparisons.Rules())
            found += sum(v.outcome is Outcome.BETTER for v in judged.values())
        name = f"{backbones} backbones, {runs} runs, sd {ours:g} and {theirs:g}, {tails}"
        bounds.at_most(f"AP {name}", column, args.studies, SINGLE)
        bounds.at_least(f"AP {name}: coverage", covered, given, COVERED)
        rows.append(
            [name, rate(column, args.studies), rate(covered, given), f"{100 * found / given:.0f}"]
        )
    show(
        "AP of detectors",
        [
            "robust backbones against a standard one",
            "any verdict wrong, %",
            "covered, %",
            "found at 2 AP, %",
        ],
        rows,
    )


# Parts of the variance of an image under one version of a condition, such as a corruption: its
# difficulty for all networks, for one network, for one version, and for one trial.
DIFFICULTIES = np.sqrt(np.array([0.5, 0.15, 0.2, 0.15], np.float32))
VERSIONS = (1, 1, 1, 15)  # clean, two attacks, and a corruption of five severities in three kinds
CONDITION_SCATTER = 0.01  # standard deviation over seeds


def conditions_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Compare two networks under several conditions that share images, networks and seeds.

    An image with several versions counts as the fraction that is classified correctly.
    """
    rows, rng = [], np.random.default_rng(10)
    for versions, trials, images in [
        (VERSIONS, 3, 300),
        (VERSIONS, 3, 1000),
        (VERSIONS, 10, 300),
        (VERSIONS, "fixed", 1000),
        ((15,), 3, 300),
        ((15,), "fixed", 300),
    ]:
        fixed, column, covered, found = trials == "fixed", 0, 0, 0
        for _ in range(args.studies):
            draws = _conditions(rng, versions, 1 if fixed else trials, images, not fixed)
            estimate = {
                k: estimates.from_predictions(*pair, fixed=(fixed, fixed))
                for k, pair in enumerate(draws)
            }
            judged = comparisons.judge_all(estimate, comparisons.Rules())
            column += any(v.outcome in DIRECTION for v in judged.values())
            covered += sum(v.low <= 0 <= v.high for v in judged.values())
            estimate = {k: replace(e, mean=e.mean + 5) for k, e in estimate.items()}
            judged = comparisons.judge_all(estimate, comparisons.Rules())
            found += sum(v.outcome is Outcome.BETTER for v in judged.values())
        given = args.studies * len(versions)
        name = f"{len(versions)}, of {max(versions)} versions, {trials} trials, {images} images"
        bounds.at_most(f"conditions {name}", column, args.studies, SINGLE)
        bounds.at_least(f"conditions {name}: coverage", covered, given, COVERED)
        rows.append(
            [
                str(len(versions)),
                str(max(versions)),
                str(trials),
                str(images),
                rate(column, args.studies),
                rate(covered, given),
                f"{100 * found / given:.0f}",
            ]
        )
    show(
        "Conditions of one task",
        [
            "conditions",
            "versions of an image, at most",
            "trials",
            "images",
            "any verdict wrong, %",
            "covered, %",
            "found at 5 points, %",
        ],
        rows,
    )


def _conditions(
    rng: np.random.Generator, versions: Iterable[int], trials: int, images: int, seeded: bool
) -> Iterable[list[np.ndarray]]:
    """Yield the correctness of a robust and a standard network, `(1, trials, images)` each."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    everyone, network, version, trial = DIFFICULTIES
    shared = everyone * normal(images) + network * normal(2, 1, 1, images)
    levels = BASE + CONDITION_SCATTER * seeded * normal(2, trials, 1, 1)
    threshold = special.ndtri(levels).astype(np.float32)
    for count in versions:
        latent = shared + version * normal(1, 1, count, images)
        right = latent + trial * normal(2, trials, count, images) < threshold
        yield [side[None] for side in right.mean(2, dtype=float)]


def tasks_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Test the verdict on the mean over all tasks."""
    rows, rng = [], np.random.default_rng(6)
    draws: dict[str, Callable] = {
        "normal": rng.standard_normal,
        "heavy": _heavy(rng),
        "skewed": lambda n: rng.exponential(1, n) - 1,
    }
    for tasks in range(2, 13):
        counts = {name: Count() for name in draws}
        power = Count()
        for name, draw in draws.items():
            for _ in range(args.studies):
                values = 2 * draw(tasks)
                counts[name].add(verdicts.judge(estimates.over_tasks(values)), 0.0)
                if name == "normal":
                    power.add(verdicts.judge(estimates.over_tasks(values + 2)), 2.0)
        count = counts["normal"] + counts["heavy"]
        bounds.at_most(f"all of {tasks} tasks", count.wrong, count.studies, POOLED)
        rows.append(
            [
                str(tasks),
                *(rate(c.wrong, c.studies) for c in counts.values()),
                f"{100 * power.found / power.studies:.0f}",
            ]
        )
    show(
        "All tasks together, scatter over tasks 2 points",
        ["tasks", *(f"wrong, {name}, %" for name in draws), "found at 2, %"],
        rows,
    )


def _heavy(rng: np.random.Generator) -> Callable:
    return lambda shape: rng.standard_t(3, shape) / np.sqrt(3)


def looks_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Simulate the hardest case of looking again: two networks, no predictions, four looks."""
    rows = []
    for ratio in SCATTER:
        world = World(ratio=ratio, predictions=False, images=4000, looks=4)
        first = simulate(replace(world, looks=1), 4 * args.studies, 8)
        count = simulate(world, 4 * args.studies, 8)
        bounds.at_most(f"looks, ratio {ratio}", count.wrong, count.studies, SINGLE)
        rows.append([ratio, rate(first.wrong, first.studies), rate(count.wrong, count.studies)])
    show(
        "Looking again, trials alone",
        ["sd ratio", "wrong at the first look, %", "wrong in up to four looks, %"],
        rows,
    )


def accuracy_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Measure the coverage of the interval of one accuracy."""
    rng, rows = np.random.default_rng(9), []
    few, mixed = np.resize([1, 2, 3, 4, 5], 102), np.resize([1, 3, 10, 30, 99], 102)
    ends = np.where(np.arange(102) % 5 < 2, 0.6, 0.99)  # the classes of 1 and 2 or 3 images
    for name, sizes, accuracy, metric in [
        ("50 images", [50], [0.97], "top1"),
        ("360 images", [360], [0.99], "top1"),
        *(
            (
                f"102 classes of 1 to {max(sizes)} images",
                sizes,
                np.full(102, accuracy),
                "mean_per_class",
            )
            for sizes in (few, mixed)
            for accuracy in (0.8, 0.9, 0.95, 0.99)
        ),
        ("the same, small classes hard (60 %)", mixed, ends, "mean_per_class"),
    ]:
        labels, each, hits = np.repeat(np.arange(len(sizes)), sizes), np.asarray(accuracy), 0
        for _ in range(args.studies):
            said = labels + (rng.random(len(labels)) >= each[labels])
            low, high = metrics.interval(*map(torch.from_numpy, (said[None], labels)), metric)
            hits += low <= 100 * each.mean() <= high
        rows.append([name, f"{100 * each.mean():.0f}", rate(hits, args.studies)])
    show("Intervals of one accuracy", ["test set", "accuracy, %", "covered, %"], rows)


# Worlds on which the older method is run, too. It is strong on some and weak on others.
COMPARED = [
    World(images=4000),
    World(images=1000, trials=10),
    World(images=4000, trials=10, ratio="6"),
    World(ratio="10"),
    World(images=200),
    World(trials="fixed"),
    World(trials=1, images=4000),
    World(sides=(9, 1)),
    World(sides=(9, 1), images=200),
    World(sides=(9, 1), ratio="10"),
    World(sides=(9, 1), trials=10, images=4000),
    World(sides=(9, 1), trials=1),
    World(sides=(9, 1), ratio="reversed"),
    World(sides=(4, 1), metric="per class"),
    World(sides=(9, 1), predictions=False),
    World(sides=(9, 1), predictions=False, images=4000, ratio="reversed"),
    World(sides=(36, 4)),
    World(predictions=False, ratio="6"),
]


def old_part(args: argparse.Namespace, bounds: Bounds) -> None:
    """Measure error rate and power of both methods on the same studies."""
    with tempfile.TemporaryDirectory() as folder:
        old = older(args.old, Path(folder))
        rows = []
        for world in COMPARED:
            cells, counts = [], {}
            for gain in (0.0, *GAINS):
                rng = np.random.default_rng(args.seed)
                now, then = Count(), 0
                number = args.studies if not gain else args.studies // 2
                for _ in range(number):
                    study = Study(replace(world, gain=gain), rng)
                    now.add(follow(study), gain)
                    low, high = old(study)
                    then += (low > 0) if gain else (low > 0 or high < 0)
                counts[gain] = (now, then)
                mine = now.found if gain else now.wrong
                cells += [f"{100 * mine / number:.1f}", f"{100 * then / number:.1f}"]
                error = counts[0.0][1] / args.studies
                # Two standard errors of the difference, for studies that both methods see.
                slack = 2 * np.sqrt(max(abs(mine - then), 1)) / number
                if gain and error <= 0.05 and mine / number < then / number - slack:
                    bounds.missed.append(
                        f"power at {gain:g} of {' '.join(world.cells())}: "
                        f"{cells[-2]} %, older method {cells[-1]} %"
                    )
            rows.append([*world.cells()[:-1], *cells])
    heads = [
        f"{name}{who}, %"
        for name in ("wrong", *(f"found at {gain:g}" for gain in GAINS))
        for who in ("", " (old)")
    ]
    show(f"The method of {args.old} on the same studies", [*HEADS[:-1], *heads], rows)


def older(commit: str, folder: Path) -> Callable[[Study], tuple[float, float]]:
    """The interval of an older commit, read from git."""
    package = folder / "older_reports"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("scatter", "statistics", "honest"):
        command = ["git", "show", f"{commit}:classification/reports/{name}.py"]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        text = done.stdout.replace("classification.reports", "older_reports")
        (package / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        scatter, statistics, honest = (
            importlib.import_module(f"older_reports.{n}")
            for n in ("scatter", "statistics", "honest")
        )
    finally:
        sys.path.remove(str(folder))

    def interval(study: Study) -> tuple[float, float]:
        ours, theirs = study.accuracies
        rows = np.concatenate([ours, theirs])
        spread = scatter.pooled(rows)
        if not study.world.predictions:
            if len(rows) == 2:
                found = statistics.over_trials(*(dict(enumerate(row)) for row in rows), spread)
            else:
                found = honest.over_trials(ours, theirs)
        else:
            right = np.concatenate(study.sides).astype(float)
            if spread:
                spread = scatter.of_trials_alone(spread, right, study.labels)
            if len(rows) == 2:
                deltas, chosen = right[0] - right[1], False
            else:
                deltas, chosen = (
                    honest.deltas(right[: len(ours)], right[len(ours) :], study.labels),
                    True,
                )
            found = statistics.over_images(deltas, study.labels, scatter=spread, chosen=chosen)
        if found is None or found.p is None:
            return -np.inf, np.inf
        return (found.low, found.high) if found.p < 0.05 else (-np.inf, np.inf)

    return interval


PARTS = {
    "worlds": worlds_part,
    "margin": margin_part,
    "detectors": detectors_part,
    "conditions": conditions_part,
    "tasks": tasks_part,
    "looks": looks_part,
    "accuracy": accuracy_part,
}


def main(argv: list[str] | None = None) -> int:
    p = Parser(description=__doc__)
    p.add_argument("--studies", type=int, help="studies per world (default: 1000; with --smoke 60)")
    p.add_argument("--worlds", type=int, help="designed worlds (default: 60; with --smoke 16)")
    p.add_argument(
        "--smoke", action="store_true", help="quick form, which reports only clear misses"
    )
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    p.add_argument("--old", metavar="COMMIT", help="compare with the method of this commit")
    p.add_argument("--seed", type=int, default=2026, help="random seed for --old (default: 2026)")
    p.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    args = p.parse_args(argv)
    args.studies = args.studies or (60 if args.smoke else 1000)
    args.worlds = args.worlds or (16 if args.smoke else 60)
    began, bounds = time.perf_counter(), Bounds(certain=args.smoke)
    for name in args.parts:
        PARTS[name](args, bounds)
    if args.old:
        old_part(args, bounds)
    missed = len(bounds.missed)
    show(
        "Bounds",
        ["bounds missed", "seconds"],
        [[str(missed), f"{time.perf_counter() - began:.0f}"]],
    )
    for text in bounds.missed:
        print(f"missed: {text}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
