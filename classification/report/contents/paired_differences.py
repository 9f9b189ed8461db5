"""Paired differences with verdicts, the best eps (Section 4.3), and average ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from classification.report import crossfit, published, statistics, verdict_words
from classification.report.comparisons import Contest, over_tasks
from classification.report.contents.parts import (
    ARCH,
    MODE,
    TASK,
    Results,
    eps_cells,
    eps_column,
    section,
    value,
)
from classification.report.groups import Group
from classification.report.records import Merged
from classification.report.sections import Column, Figure, Kind, Row, Section, Series, Value
from classification.report.verdict_words import (
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    interval,
    verdict_cells,
)
from classification.report.verdicts import Missing, Over, Verdict
from robust_backbones.core.eps import show_eps

BIAS = Column("selection_bias", kind=Kind.DIFFERENCE)
RECIPES = Column("recipes_differ_in", optional=True)
PAIRED = [
    MODE,
    TASK,
    Column("measured", "measured difference", Kind.DIFFERENCE),
    Column("cross_fitted", "cross-fitted difference", Kind.DIFFERENCE),
    BIAS,
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    RECIPES,
    Column("interval_over"),
]
SECTION_4_3 = [
    MODE,
    TASK,
    ARCH,
    Column("best_eps"),
    Column("accuracy", kind=Kind.ACCURACY),
    Column("measured", "gain", Kind.DIFFERENCE),
    Column("cross_fitted", "cross-fitted gain", Kind.DIFFERENCE),
    BIAS,
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    RECIPES,
    Column("paper_eps", "paper: eps", paper=True),
    Column("paper_best_run_eps", "paper: eps of its best run", paper=True),
]


def _contest_cells(c: Contest) -> Row:
    """Return a contest's cells: differences, selection bias, verdict, and differing recipes."""
    indices = (*c.robust.indices, *c.standard.indices)
    return {
        "measured": Value(c.measured, trials=min(c.estimate.trials), records=indices),
        "cross_fitted": interval(c.verdict, indices),
        BIAS.key: c.bias,
        **verdict_cells(c.verdict),
        RECIPES.key: ", ".join(c.differs),
    }


def section_4_3(results: Results, group: Group) -> list[Section]:
    """Build the table for Section 4.3: the best eps of each task and architecture."""
    contests = results.by_architecture[group.suffix]
    if not contests:
        return []
    text = [
        "The table shows the eps that is best on the test images, and its gain over the standard "
        "network. The cross-fitted gain is measured on images and trials that were not used to "
        "choose eps. The difference between the two gains is the selection bias from choosing "
        f"among {len(group.eps)} values of eps.",
        verdict_words.how(results.rules),
        *verdict_words.about(contests.values()),
    ]
    if group.reference:
        paper = published.numbers()["section_4_3"]
        named = ", ".join(f"{eps:g} for {task}" for task, eps in paper["best_eps"].items())
        text.append(
            f"The paper's best eps: {named}, for the other tasks {paper['others']}. Its "
            "best run may be one of the standard network, eps 0."
        )
    return [
        section(
            group,
            "section4-3",
            "Section 4.3: the best eps of each task",
            text=text,
            columns=SECTION_4_3,
            rows=[_section_4_3_row(group, *key, c) for key, c in contests.items()],
            runs=[run for c in contests.values() for run in (c.robust, c.standard)],
            found=len(contests),
            wanted=len(group.modes) * len(group.archs) * len(group.tasks),
        )
    ]


def _section_4_3_row(group: Group, mode: str, task: str, arch: str, c: Contest) -> Row:
    best_run = published.best_run(mode, task, arch) if group.reference else None
    best_eps = published.best_eps(task) if group.reference else None
    return {
        "mode": mode,
        "task": task,
        "architecture": arch,
        "best_eps": show_eps(group.key.norm, c.robust.first.eps),
        "accuracy": value(c.robust),
        **_contest_cells(c),
        "paper_eps": "" if best_eps is None else f"{best_eps:g}",
        "paper_best_run_eps": f"{best_run['eps']:g}" if best_run else "",
    }


def paired(results: Results, group: Group) -> list[Section]:
    """Build the table of paired differences between the best robust and the best standard network.

    The table has a verdict for each task, and for the mean over all tasks.
    """
    contests = results.contests[group.suffix]
    if not contests:
        return []
    rows: list[Row] = []
    for mode in group.modes:
        own = {task: c for (m, task), c in contests.items() if m == mode}
        rows += [
            {
                "mode": mode,
                "task": task,
                **_contest_cells(c),
                "interval_over": verdict_words.over(c.verdict),
            }
            for task, c in own.items()
        ]
        if len(own) > 1:
            name = f"all tasks {group.key.name} {mode}"
            verdict = over_tasks(own.values(), results.rules, name)
            rows.append(
                {
                    "mode": mode,
                    "task": "all tasks",
                    "cross_fitted": interval(verdict),
                    **verdict_cells(verdict),
                    "interval_over": verdict_words.over(verdict),
                }
            )
    text = [
        "Best robust minus best standard network over all architectures and configurations, in "
        "percentage points. For the measured difference, both are chosen on the test images, "
        "the robust one among more networks. The cross-fitted difference is reported on other test "
        "images and trials than the choice of the networks. It is averaged over "
        f"{crossfit.SPLITS} random halvings of the images.",
        verdict_words.how(results.rules),
        *verdict_words.about(contests.values()),
    ]
    return [
        section(
            group,
            "paired",
            "Paired differences and verdicts",
            text=text,
            columns=PAIRED,
            rows=rows,
            runs=[run for c in contests.values() for run in (c.robust, c.standard)],
            warned=_warnings([c.verdict for c in contests.values() if c.verdict]),
            found=len(contests),
            wanted=len(group.modes) * len(group.tasks),
        )
    ]


def _warnings(verdicts: Sequence[Verdict]) -> list[str]:
    found = []
    if any(v.estimate.missing is Missing.TRIALS for v in verdicts):
        found.append(
            "Some networks have too few trials. One trial, or two trials of a single network, do "
            "not show how much seeds matter. Run three trials or more."
        )
    if any(v.estimate.over == Over.TRIALS for v in verdicts):
        found.append(
            "Some intervals are over trials alone, because predictions are missing. They are about "
            "this test set. Other images may give another difference."
        )
    if any(v.estimate.unseen for v in verdicts):
        found.append(
            "Some networks were chosen without predictions, by the same images. The intervals are "
            "wide, because they include the selection bias by images."
        )
    return found


def ranks(results: Results, group: Group) -> list[Section]:
    """Build the table of average ranks over tasks, with one rank for each eps.

    Each architecture has its own row. One more row uses the best architecture for each eps.
    """
    levels, norm = (0.0, *group.eps), group.key.norm
    rows, panels, runs, found = [], {}, [], 0
    for mode in group.modes:
        drawn = []
        for arch in (*group.archs, None):
            table, used = _complete(group, mode, arch, levels)
            got = statistics.ranks(np.array(table)) if table else None
            label = arch or "best of all"
            row: Row = {"mode": mode, "architecture": label, "tasks": len(table)}
            if got:
                row |= eps_cells(levels, got.means)
                row |= {"critical_difference": got.critical, "p": got.p}
                runs, found = runs + used, found + 1
                drawn.append(Series(label, [*levels], [*got.means]))
            rows.append(row)
        if drawn:
            panels[mode] = drawn
    if not found:
        return []
    columns = [
        MODE,
        ARCH,
        *(eps_column(eps, norm, Kind.RANK) for eps in levels),
        Column("critical_difference", kind=Kind.RANK),
        Column("p", kind=Kind.P_VALUE),
        Column("tasks", kind=Kind.COUNT),
    ]
    text = [
        "Rank of each eps among the networks of an architecture, averaged over the tasks that have "
        "all of them. 1 is the best, and eps 0 is the standard network. p is from Friedman's test "
        "of equal ranks. Networks whose ranks differ by less than the critical difference "
        "(Nemenyi, 5 %) are not significantly different."
    ]
    axes = (f"eps of the pretraining ({norm})", "average rank, 1 is best")
    figure = Figure(
        "ranks" + group.suffix, "curves", "Average rank of each eps", *axes, panels, log_x=True
    )
    return [
        section(
            group,
            "ranks",
            "Average ranks",
            text=text,
            columns=columns,
            rows=rows,
            runs=runs,
            figures=[figure],
            found=found,
            wanted=len(rows),
        )
    ]


def _complete(
    group: Group, mode: str, arch: str | None, levels: Sequence[float]
) -> tuple[list[list[float]], list[Merged]]:
    """Collect the accuracies of the tasks that have a run for every eps.

    Args:
        group: group of comparable results.
        mode: transfer mode.
        arch: name of the architecture; None: the best architecture for each eps.
        levels: every eps that a task must have.

    Returns:
        Accuracies `(tasks, eps)`, percent, and the runs that have these accuracies.
    """
    archs = group.archs if arch is None else (arch,)
    table, used = [], []
    for task in group.tasks:
        runs = [[group.cell(mode, task, a, eps) for a in archs] for eps in levels]
        have = [[run for run in own if run] for own in runs]
        if all(have):
            best = [max(own, key=lambda run: run.mean) for own in have]
            table.append([run.mean for run in best])
            used += best
    return table, used
