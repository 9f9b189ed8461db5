"""Table 1, Figures 2 and 3, and accuracy against eps: accuracy of robust and standard networks."""

from __future__ import annotations

from collections.abc import Iterable

from classification.report import published
from classification.report.contents.parts import (
    ARCH,
    MODE,
    TASK,
    Results,
    eps_cells,
    eps_column,
    minus,
    section,
    series,
    value,
)
from classification.report.groups import Group
from classification.report.records import Merged
from classification.report.sections import Column, Figure, Kind, Row, Section
from classification.report.verdict_words import VERDICT, outcome
from robust_backbones.core.eps import show_eps

PAPER_FIGURES = {"fixed-feature": "2", "full-network": "3"}
STANDARD = Column("standard", kind=Kind.ACCURACY, compared=True)
ROBUST = Column("robust", kind=Kind.ACCURACY, compared=True)
DIFFERENCE = Column("difference", kind=Kind.DIFFERENCE)
TABLE1 = [
    MODE,
    TASK,
    Column("metric"),
    ROBUST,
    Column("robust_network"),
    STANDARD,
    Column("standard_network"),
    DIFFERENCE,
    Column("paper_robust", "paper: robust", Kind.ACCURACY, paper=True),
    Column("paper_standard", "paper: standard", Kind.ACCURACY, paper=True),
    Column("paper_difference", "paper: difference", Kind.DIFFERENCE, paper=True),
    Column("robust_minus_paper", "robust - paper", Kind.DIFFERENCE, paper=True),
    Column("standard_minus_paper", "standard - paper", Kind.DIFFERENCE, paper=True),
    VERDICT,
]
BARS = [
    TASK,
    ARCH,
    STANDARD,
    ROBUST,
    Column("eps"),
    DIFFERENCE,
    Column("paper_best", "paper: best run", Kind.ACCURACY, paper=True),
    Column("paper_best_eps", "paper: its eps", paper=True),
]
CORRECTED = (
    "The verdict is not about the difference of these means. For the verdict, networks are chosen "
    "and evaluated on different test images and trials, and p-values are corrected for "
    "the number of tasks. See the section on paired differences."
)


def table1(results: Results, group: Group) -> list[Section]:
    """Build Table 1: the best robust and the best standard network of each task."""
    rows, runs = [], []
    for mode in group.modes:
        for task in group.tasks:
            every = [run for arch in group.archs for run in group.row(mode, task, arch).values()]
            runs += every
            contest = results.contests[group.suffix].get((mode, task))
            row = _table1_row(group, mode, task, every)
            rows.append(row | {VERDICT.key: outcome(contest.verdict if contest else None)})
    text = [
        "Best accuracy over architectures, hyperparameters and, for robust networks, eps, in "
        "percent. Each number is the mean over trials, with the lowest and the highest trial.",
        CORRECTED,
    ]
    if group.reference:
        numbers = published.numbers()
        text.append(f"The paper's numbers: {numbers['table1']['definition'].strip()}.")
        if plain := [task for task in group.tasks if task in numbers["top1"]]:
            text.append(
                f"The paper's numbers for {', '.join(plain)} are mostly top-1 accuracies. "
                "Ours are means over classes unless --metric top1 was given."
            )
    return [
        section(
            group,
            "table1",
            "Table 1: best robust and best standard networks",
            runs=runs,
            text=text,
            columns=TABLE1,
            rows=rows,
            found=sum(row[c.key] is not None for row in rows for c in (ROBUST, STANDARD)),
            wanted=2 * len(rows),
            figures=[_table1_figure(group, rows)],
        )
    ]


def best(runs: Iterable[Merged], robust: bool) -> Merged | None:
    """Return the robust or the standard run with the highest mean accuracy.

    Args:
        runs: runs of robust and standard networks.
        robust: whether to search among the robust runs instead of the standard runs.

    Returns:
        The best run; None if there is no run to choose.
    """
    side = [run for run in runs if bool(run.first.eps) == robust]
    return max(side, key=lambda run: run.mean, default=None)


def _table1_row(group: Group, mode: str, task: str, runs: list[Merged]) -> Row:
    robust, standard = (best(runs, robust=side) for side in (True, False))
    ours: Row = {"robust": value(robust), "standard": value(standard)}
    paper = {side: published.table1(mode, task, side) if group.reference else None for side in ours}
    metric = next((run.first.metric for run in (robust, standard) if run), "")
    return ours | {
        "mode": mode,
        "task": task,
        "metric": metric.replace("_", " "),
        "robust_network": _network(robust, group),
        "standard_network": _network(standard, group),
        "difference": minus(ours["robust"], ours["standard"]),
        "paper_robust": paper["robust"],
        "paper_standard": paper["standard"],
        "paper_difference": minus(paper["robust"], paper["standard"]),
        "robust_minus_paper": minus(ours["robust"], paper["robust"]),
        "standard_minus_paper": minus(ours["standard"], paper["standard"]),
    }


def _network(run: Merged | None, group: Group) -> str:
    if run is None:
        return ""
    return f"{group.names[id(run)]}, eps {show_eps(group.key.norm, run.first.eps)}"


def _table1_figure(group: Group, rows: list[Row]) -> Figure:
    panels = {}
    for mode in group.modes:
        own = [row for row in rows if row["mode"] == mode]
        tasks = [row["task"] for row in own]
        sides = ("standard", "robust")
        panels[mode] = [series(side, tasks, [row[side] for row in own]) for side in sides]
        for side in sides:
            paper = [row[f"paper_{side}"] for row in own]
            if any(number is not None for number in paper):
                panels[mode].append(series(f"{side} (paper)", tasks, paper, published=True))
    return Figure(
        "table1" + group.suffix,
        "bars",
        "Best robust and best standard networks",
        "task",
        "accuracy, %",
        panels,
    )


def bars(results: Results, group: Group) -> list[Section]:
    """Build Figures 2 and 3: the standard and the best robust network of each architecture."""
    return [_bars(group, mode) for mode in group.modes]


def _bars(group: Group, mode: str) -> Section:
    rows, runs, panels = [], [], {}
    for task in group.tasks:
        own = []
        for arch in group.archs:
            found = group.row(mode, task, arch)
            runs += found.values()
            own.append(_bars_row(group, mode, task, arch, found))
        rows += own
        if any(row["standard"] or row["robust"] for row in own):
            panels[task] = [
                series(side, [*group.archs], [row[side] for row in own])
                for side in ("standard", "robust")
            ]
    number = PAPER_FIGURES[mode]
    text = [
        f"Standard and best robust network of each architecture, {mode} transfer, in percent. Each "
        "number is the mean over trials, with the lowest and the highest trial. The best eps is "
        f"chosen on the test images, among {len(group.eps)}: see the section on the choice of eps."
    ]
    if group.reference:
        text.append(
            "The paper's figure has no numbers. The table compares with the best single run that "
            "its authors published, with any eps."
        )
    title = f"Figure {number}: {mode} transfer by architecture"
    name = f"figure{number}"
    axes = ("architecture", "accuracy, %")
    return section(
        group,
        name,
        title,
        runs=runs,
        text=text,
        columns=BARS,
        rows=rows,
        figures=[Figure(name + group.suffix, "bars", title, *axes, panels)],
        found=sum(row[side] is not None for row in rows for side in ("standard", "robust")),
        wanted=2 * len(rows),
    )


def _bars_row(group: Group, mode: str, task: str, arch: str, runs: dict[float, Merged]) -> Row:
    """Build the table row of one architecture.

    Args:
        group: group of comparable results.
        mode: transfer mode.
        task: name of the task.
        arch: name of the architecture.
        runs: mapping from eps to the run. The standard network has eps 0.
    """
    standard, robust = value(runs.get(0.0)), best(runs.values(), robust=True)
    paper = (published.best_run(mode, task, arch) if group.reference else None) or {}
    return {
        "task": task,
        "architecture": arch,
        "standard": standard,
        "robust": value(robust),
        "eps": show_eps(group.key.norm, robust.first.eps) if robust else "",
        "difference": minus(value(robust), standard),
        "paper_best": paper.get("accuracy"),
        "paper_best_eps": f"{paper['eps']:g}" if paper else "",
    }


def curves(results: Results, group: Group) -> list[Section]:
    """Build the curves of accuracy against eps for each task, as in the paper's appendix."""
    excluded = results.excluded.get(group.suffix, frozenset())
    return [_curves(group, mode, sum(cell[0] == mode for cell in excluded)) for mode in group.modes]


def _curves(group: Group, mode: str, excluded: int) -> Section:
    """Build the curves of one transfer mode.

    Args:
        group: group of comparable results.
        mode: transfer mode.
        excluded: number of cells of this mode that the study excludes.
    """
    levels, norm = (0.0, *group.eps), group.key.norm
    columns = [eps_column(eps, norm) for eps in levels]
    rows, runs, panels = [], [], {}
    for task in group.tasks:
        drawn = []
        for arch in group.archs:
            found = group.row(mode, task, arch)
            values = [value(found.get(eps)) for eps in levels]
            runs += found.values()
            rows.append({"task": task, "architecture": arch, **eps_cells(levels, values)})
            if found:
                drawn.append(series(arch, [*levels], values))
        if drawn:
            panels[task] = drawn
    title, name = f"Accuracy against eps, {mode}", f"curves-{mode}"
    axes = (f"eps of the pretraining ({norm})", "accuracy, %")
    figure = Figure(name + group.suffix, "curves", title, *axes, panels, log_x=True)
    text = [
        "In percent. Each number is the mean over trials, with the lowest and the highest trial. "
        "eps 0 is the standard network. The paper has these curves in its appendix, as plots "
        "without numbers."
    ]
    return section(
        group,
        name,
        title,
        runs=runs,
        text=text,
        columns=[TASK, ARCH, *columns],
        rows=rows,
        figures=[figure] if panels else [],
        found=sum(row[c.key] is not None for row in rows for c in columns),
        wanted=len(rows) * len(columns) - excluded,
    )
