"""The best robust network against the best standard one, with and without the luck of choosing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from classification.reports import honest, scatter, statistics
from classification.reports.cells import Group
from classification.reports.records import Merged
from classification.reports.scatter import Spread
from classification.reports.statistics import Difference
from classification.transfers import predictions


@dataclass(frozen=True)
class Contest:
    """Robust networks against standard ones on a task.

    Attributes:
        robust, standard: the best of each, by the test images.
        lucky: their difference as it stands, points.
        honest: the difference where other images or trials choose than report; None where there
            is neither.
        p: of `honest`, corrected for the number of tasks.
        verdict: by `honest`; one of `statistics.VERDICTS`.
    """

    robust: Merged
    standard: Merged
    lucky: Difference
    honest: Difference | None
    p: float | None = None
    verdict: str = statistics.VERDICTS[None]


def contest(robust: list[Merged], standard: list[Merged]) -> Contest | None:
    """None where one side has nobody."""
    if not robust or not standard:
        return None
    best, usual = (max(side, key=lambda run: run.mean) for side in (robust, standard))
    spread = _spread([*robust, *standard])
    lucky = difference(best, usual, spread)
    if len(robust) == len(standard) == 1:
        fair = lucky if lucky.p is not None else None  # nothing was chosen
    else:
        fair = _fair(robust, standard, spread)
    return Contest(best, usual, lucky, fair)


def corrected(contests: dict, level: float = 1 - statistics.CONFIDENCE) -> dict:
    """The same contests with p-values corrected for their number, and verdicts."""
    p = statistics.holm([c.honest.p if c.honest else None for c in contests.values()])
    return {
        key: replace(c, p=value, verdict=statistics.verdict(c.honest.mean, value, level)
                     if c.honest else statistics.VERDICTS[None])
        for (key, c), value in zip(contests.items(), p, strict=True)
    }  # fmt: skip


def compare(group: Group) -> dict[tuple[str, str], Contest]:
    """(mode, task) -> the contest over all architectures and eps, as Table 1 has it; corrected for
    the number of tasks of the mode."""
    found = {}
    for mode in group.modes:
        contests = {}
        for task in group.tasks:
            rows = [group.row(mode, task, arch) for arch in group.archs]
            robust = [run for row in rows for eps, run in row.items() if eps]
            standard = [row[0.0] for row in rows if 0.0 in row]
            if c := contest(robust, standard):
                contests[mode, task] = c
        found |= corrected(contests)
    return found


def difference(one: Merged, other: Merged, spread: Spread | None = None) -> Difference:
    """Of two runs, over images and trials where there are predictions, else over trials.

    Args:
        spread: over trials; None: of these two runs alone.
    """
    if loaded := predictions.right([one, other]):
        (a, b), labels = loaded
        return statistics.over_images(a.astype(float) - b, _strata(one, labels), scatter=spread)
    first, second = (dict(zip(r.seeds, r.accuracies, strict=True)) for r in (one, other))
    return statistics.over_trials(first, second, spread)


def _spread(runs: list[Merged]) -> Spread | None:
    """None if their seeds have not at least two in common."""
    seeds = set.intersection(*(set(run.seeds) for run in runs))
    if len(seeds) < 2:
        return None
    spread = scatter.pooled(_table(runs, seeds))
    if spread and (loaded := predictions.right(runs)):
        right, labels = loaded
        spread = scatter.of_trials_alone(spread, right, _strata(runs[0], labels))
    return spread


def _fair(robust: list[Merged], standard: list[Merged], spread: Spread | None) -> Difference | None:
    if loaded := predictions.right([*robust, *standard]):
        right, labels = loaded
        strata = _strata(robust[0], labels)
        deltas = honest.deltas(right[: len(robust)], right[len(robust) :], strata)
        return statistics.over_images(deltas, strata, scatter=spread, chosen=True)
    seeds = set.intersection(*(set(run.seeds) for run in (*robust, *standard)))
    if len(seeds) < 2:
        return None
    return honest.over_trials(_table(robust, seeds), _table(standard, seeds))


def _table(runs: list[Merged], seeds: set[int]) -> np.ndarray:
    return np.array([
        [a for s, a in zip(run.seeds, run.accuracies, strict=True) if s in seeds] for run in runs
    ])  # fmt: skip


def _strata(run: Merged, labels: np.ndarray) -> np.ndarray | None:
    return labels if run.first.metric == "mean_per_class" else None
