"""Compare the best robust with the best standard network: runs, estimates and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from classification.report import estimates, predictions, records, statistics, verdicts
from classification.report.groups import Group
from classification.report.records import Merged, Record
from classification.report.verdicts import Estimate, Over, Verdict
from classification.transfer.protocols import CHOICES

# Networks with fewer trials are excluded if another network of their side has at least this many.
ENOUGH = 3
# Fields of `settings.source` that define a pretraining recipe, and their names in the report.
RECIPE = {"dataset": "pretraining data", "epochs": "epochs", "seed": "initialization"}
K = TypeVar("K", bound=Hashable)
View = Callable[[Merged], Merged | None]


@dataclass
class Rules:
    """Rules for the verdicts of a report.

    Attributes:
        margin: largest difference that counts as no difference, points.
        looks: mapping from the name of a comparison to the numbers of trials at each look, such as
            `"3 v 3"`. A look is a verdict on the trials that exist at that time. Each verdict adds
            its numbers, because a later look at more trials has a smaller allowed error
            probability.
    """

    margin: float = verdicts.MARGIN
    looks: dict[str, list[str]] = field(default_factory=dict)

    def look(self, name: str, *parts: Estimate) -> int:
        """Record a look at a comparison and return its number, from 1.

        Verdicts on the same numbers of trials count as one look.

        Args:
            name: name of the comparison.
            parts: estimate of the comparison; for a comparison over tasks, one estimate per task.
        """
        if not any(part.over & Over.TRIALS for part in parts):
            return 1
        trials = ", ".join("{} v {}".format(*part.trials) for part in parts)
        before = self.looks.setdefault(name, [])
        if trials not in before:
            before.append(trials)
        return before.index(trials) + 1


@dataclass(frozen=True)
class Contest:
    """Comparison of robust with standard networks on one task.

    Attributes:
        robust, standard: run of each side with the highest accuracy on the test images.
        measured: difference of the mean accuracies of `robust` and `standard`, points. It contains
            selection bias.
        estimate: cross-fitted estimate of the difference. The networks are chosen in other trials
            and, if predictions exist, on other images.
        verdict: verdict on the estimate; None until `with_verdicts` adds it.
        differs: names of the fields of `RECIPE` in which the two networks differ; `architecture` if
            a network is compared with a twin of another architecture.
        pretrainings: whether every network was pretrained several times. The verdict is then about
            the recipe instead of single checkpoints.
    """

    robust: Merged
    standard: Merged
    measured: float
    estimate: Estimate
    verdict: Verdict | None = None
    differs: tuple[str, ...] = ()
    pretrainings: bool = False

    @property
    def bias(self) -> float | None:
        """Selection bias of `measured`, points; None if the estimate has no interval."""
        return None if self.estimate.missing else self.measured - self.estimate.mean


def contest(robust: list[Merged], standard: list[Merged]) -> Contest | None:
    """Compare robust with standard runs on one task.

    Each configuration of a network is a separate candidate for the best network.

    Returns:
        The comparison without a verdict; None if there are no robust or no standard runs.
    """
    if not robust or not standard:
        return None
    best, standard_best = (max(side, key=lambda run: run.mean) for side in (robust, standard))
    ours, theirs = _candidates(robust), _candidates(standard)
    repeated = _pretrainings(ours) and _pretrainings(theirs)
    return Contest(
        best,
        standard_best,
        best.mean - standard_best.mean,
        _estimate(ours, theirs, repeated),
        differs=recipe_differences(_source(best), _source(standard_best)),
        pretrainings=repeated,
    )


def with_verdicts(contests: dict[K, Contest], rules: Rules, name: str = "") -> dict[K, Contest]:
    """Add verdicts to the contests of one table column, with p-values corrected by Holm's method.

    Args:
        contests: contests of the column.
        rules: rules for verdicts.
        name: name of the column. The name and a contest's key identify a comparison in
            `rules.looks`.
    """
    found = {key: c.estimate for key, c in contests.items()}
    verdict = judge_all(found, rules, name)
    return {key: replace(c, verdict=verdict[key]) for key, c in contests.items()}


def judge_all(found: dict[K, Estimate], rules: Rules, name: str = "") -> dict[K, Verdict]:
    """Return a verdict on each estimate of one table column. `with_verdicts` has the arguments."""
    p = statistics.holm([None if e.missing else e.p for e in found.values()])
    return {
        key: verdicts.judge(e, value, margin=rules.margin, look=rules.look(f"{name} {key}", e))
        for (key, e), value in zip(found.items(), p, strict=True)
    }


def over_tasks(contests: Iterable[Contest], rules: Rules, name: str) -> Verdict:
    """Return the verdict on the mean difference over the tasks whose estimate has an interval."""
    usable = [c for c in contests if not c.estimate.missing]
    look = rules.look(name, *(c.estimate for c in usable))
    estimate = estimates.over_tasks([c.estimate.mean for c in usable])
    return verdicts.judge(estimate, margin=rules.margin, look=look)


def compare(group: Group, rules: Rules) -> dict[tuple[str, str], Contest]:
    """Map (mode, task) to the contest over all architectures and eps, as in Table 1."""
    found = {}
    for mode in group.modes:
        contests = {(mode, task): c for task, c in _contests(group, mode, group.archs).items()}
        found |= with_verdicts(contests, rules, f"table1 {group.key.name}")
    return found


def compare_architectures(group: Group, rules: Rules) -> dict[tuple[str, str, str], Contest]:
    """Map (mode, task, architecture) to the contest over all eps, as in Section 4.3.

    p-values are corrected for the number of tasks, for each architecture separately.
    """
    found = {}
    for mode in group.modes:
        for arch in group.archs:
            own = {(mode, task, arch): c for task, c in _of_architecture(group, mode, arch).items()}
            found |= with_verdicts(own, rules, f"section4-3 {group.key.name}")
    return found


def compare_conditions(
    group: Group, found: Sequence[Record], rules: Rules
) -> dict[tuple[str, str, str, str], Contest]:
    """Map (mode, task, architecture, condition) to the contest over all eps under a condition.

    The best eps is chosen under each condition. p-values are corrected for the number of tasks and
    conditions, for each architecture separately.

    Args:
        group: group of comparable results.
        found: all records of the report.
        rules: rules for verdicts.
    """
    names, judged = group.conditions(found), {}
    for mode in group.modes:
        for arch in group.archs:
            every = {
                name: _of_architecture(group, mode, arch, partial(records.under, found, name))
                for name in names
            }
            contests = {
                (mode, task, arch, name): own[task]
                for task in group.tasks
                for name, own in every.items()
                if task in own
            }
            judged |= with_verdicts(contests, rules, f"conditions {group.key.name}")
    return judged


def _of_architecture(
    group: Group, mode: str, arch: str, view: View | None = None
) -> dict[str, Contest]:
    """Map each task to the contest over all eps of an architecture, as `_contests` does."""
    more = ("architecture",) * (arch in group.other_twins)
    found = _contests(group, mode, (arch,), view=view)
    return {task: replace(c, differs=more + c.differs) for task, c in found.items()}


def compare_downscaled(group: Group, pixels: int, rules: Rules) -> dict[tuple[str, str], Contest]:
    """Map (mode, task) to the contest on images downscaled to `pixels`, over all architectures."""
    found = {}
    for mode in group.modes:
        own = _contests(group, mode, group.archs, pixels)
        contests = {(mode, task): c for task, c in own.items()}
        found |= with_verdicts(contests, rules, f"downscaled {pixels} {group.key.name}")
    return found


def _contests(
    group: Group,
    mode: str,
    archs: Iterable[str],
    pixels: int | None = None,
    view: View | None = None,
) -> dict[str, Contest]:
    """Map each task that has robust and standard runs to its contest, without a verdict.

    Args:
        group: group of comparable results.
        mode: transfer mode.
        archs: architectures whose networks are compared.
        pixels: size, in pixels, to which the images were downscaled; None: original images.
        view: function that returns the run to compare for each run of the group, or None to skip
            the run; None: compare the runs themselves.
    """
    found = {}
    for task in group.tasks:
        runs = {  # several rows may have the same standard network
            id(run): view(run) if view else run
            for arch in archs
            for eps in (0.0, *group.eps)
            for run in group.configurations(mode, task, arch, eps, pixels)
        }
        robust, standard = (
            [run for run in runs.values() if run and bool(run.first.eps) is side]
            for side in (True, False)
        )
        if c := contest(robust, standard):
            found[task] = c
    return found


def _candidates(side: list[Merged]) -> list[Merged]:
    """Return the runs of a side that can be chosen as its best run.

    Runs are excluded only because of their number of trials, which does not depend on the accuracy.
    """
    return [run for run in side if len(run.seeds) >= ENOUGH] or side


def _estimate(robust: list[Merged], standard: list[Merged], repeated: bool) -> Estimate:
    if loaded := predictions.correctness([*robust, *standard]):
        right, labels = loaded
        ours, theirs = (
            _array(right[: len(robust)], robust, repeated),
            _array(right[len(robust) :], standard, repeated),
        )
        classes = labels if robust[0].first.metric == "mean_per_class" else None
        fixed = (_fixed(robust) and not repeated, _fixed(standard) and not repeated)
        return estimates.from_predictions(ours, theirs, classes, fixed=fixed)
    ours, theirs = (
        _array([np.array(run.accuracies) for run in side], side, repeated)
        for side in (robust, standard)
    )
    images = {
        run.first.condition.images or (run.first.data.get("test") or {}).get("images")
        for run in (*robust, *standard)
    }
    return estimates.from_accuracies(ours, theirs, images.pop() if len(images) == 1 else None)


def _array(rows: list[np.ndarray], side: list[Merged], repeated: bool) -> np.ndarray:
    """Stack the results of a side into an array `(networks, trials, ...)`.

    Args:
        rows: results `(trials, ...)` of each run.
        side: runs of the side, in the same order.
        repeated: whether to average over trials, and return `(networks, pretrainings, ...)`.
    """
    if not repeated:
        return _stacked(rows)
    pretrainings: dict[tuple, list[np.ndarray]] = {}
    for row, run in zip(rows, side, strict=True):
        pretrainings.setdefault(_network(run), []).append(row.mean(0))
    return _stacked([np.stack(own) for own in pretrainings.values()])


def _stacked(runs: list[np.ndarray]) -> np.ndarray:
    """Stack the runs. Longer runs are cut to the number of trials of the shortest run."""
    trials = min(map(len, runs))
    return np.stack([run[:trials] for run in runs])


def _fixed(side: list[Merged]) -> bool:
    """Return whether a single trial is enough because the runs do not depend on the seed.

    This is true for a logistic probe on all images with a given penalty. It is also true for
    nearest neighbors on all images with a given number of neighbors. If the run chooses the penalty
    or the number, the choice depends on validation images that the seed draws.
    """
    settings = [run.first.settings for run in side]
    return all(
        own.get("probe") in ("logistic", "knn")
        and own.get(CHOICES[own["probe"]]) is not None
        and not own.get("shots")
        and not own.get("fraction")
        for own in settings
    )


def _network(run: Merged) -> tuple:
    """Return a key that is equal for runs whose networks differ only in the pretraining seed."""
    record = run.first
    names = {"seed", "trials", "weights", "weights_sha256", "save_classifier", "source"}
    names |= {"conditions"}
    chosen = sorted((k, str(v)) for k, v in record.settings.items() if k not in names)
    source = {k: v for k, v in _source(run).items() if k != "seed"}
    return (record.arch, record.eps, tuple(chosen), tuple(sorted(map(str, source.items()))))


def _pretrainings(side: list[Merged]) -> bool:
    """Return whether each network of a side was pretrained with two or more recorded seeds."""
    seeds: dict[tuple, list] = {}
    for run in side:
        seeds.setdefault(_network(run), []).append(_source(run).get("seed"))
    return all(
        len(own) > 1 and None not in own and len(set(own)) == len(own) for own in seeds.values()
    )


def _source(run: Merged) -> dict:
    return run.first.settings.get("source") or {}


def recipe_differences(one: dict, other: dict) -> tuple[str, ...]:
    """Name the fields of the pretraining recipe that both networks record and that differ.

    Args:
        one, other: recipes, as in `settings.source` of a result.
    """
    return tuple(
        words
        for name, words in RECIPE.items()
        if one.get(name) is not None and other.get(name) is not None and one[name] != other[name]
    )
