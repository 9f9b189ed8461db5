"""Table 1, Figures 2 and 3, and accuracy against eps: what robust and standard networks reach."""

from __future__ import annotations

from collections.abc import Iterable

from classification.report import published
from classification.report.exhibits.parts import Results, columns, minus, section, series, value
from classification.report.groups import Group
from classification.report.records import Merged
from classification.report.sections import Figure, Section, Series
from classification.report.verdict_words import COLUMN, outcome
from robust_backbones.core.eps import show_eps

PAPER_FIGURES = {"fixed-feature": "2", "full-network": "3"}
CORRECTED = (
    "The verdict is not about the difference of these means. Networks are reported on other test "
    "images and trials than those that choose them, and p-values are corrected for the number of "
    "tasks. See the section on paired differences."
)


def table1(results: Results, group: Group) -> list[Section]:
    """The best robust against the best standard network of each task."""
    rows, runs, found = [], [], 0
    contests = results.contests[group.suffix]
    wanted = 2 * len(group.modes) * len(group.tasks)
    for mode in group.modes:
        for task in group.tasks:
            every = [run for arch in group.archs for run in group.row(mode, task, arch).values()]
            robust, standard = (best(every, robust=side) for side in (True, False))
            runs += every
            found += (robust is not None) + (standard is not None)
            rows.append(_table1_row(mode, task, robust, standard, contests, group))
    heads = columns(
        "mode",
        "task",
        "metric",
        ("robust", 2, "high"),
        "robust network",
        ("standard", 2, "high"),
        "standard network",
        ("difference", 2),
        ("paper: robust", 2),
        ("paper: standard", 2),
        ("paper: difference", 2),
        ("robust - paper", 2),
        ("standard - paper", 2),
        COLUMN,
    )
    text = [
        "Best accuracy over architectures, hyper-parameters and, of robust networks, eps, percent; "
        "mean and ends over the trials.",
        CORRECTED,
    ]
    if group.reference:
        numbers = published.numbers()
        text.append(f"The paper's: {numbers['table1']['definition'].strip()}.")
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
            columns=heads,
            rows=rows,
            found=found,
            wanted=wanted,
            figures=[_table1_figure(group, rows)],
        )
    ]


def best(runs: Iterable[Merged], robust: bool) -> Merged | None:
    """The robust, or standard, run with the highest mean."""
    side = [run for run in runs if bool(run.first.eps) == robust]
    return max(side, key=lambda run: run.mean, default=None)


def _table1_row(
    mode: str,
    task: str,
    robust: Merged | None,
    standard: Merged | None,
    contests: dict,
    group: Group,
) -> list:
    ours = (value(robust), value(standard))
    theirs = tuple(_paper(group, mode, task, kind) for kind in ("robust", "standard"))
    metric = next((run.first.metric for run in (robust, standard) if run), "")
    contest = contests.get((mode, task))
    return [
        mode,
        task,
        metric.replace("_", " "),
        ours[0],
        _network(robust, group),
        ours[1],
        _network(standard, group),
        minus(*ours),
        *theirs,
        minus(*theirs),
        minus(ours[0], theirs[0]),
        minus(ours[1], theirs[1]),
        outcome(contest and contest.verdict),
    ]


def _paper(group: Group, mode: str, task: str, kind: str) -> float | None:
    return published.table1(mode, task, kind) if group.reference else None


def _network(run: Merged | None, group: Group) -> str:
    if run is None:
        return ""
    return f"{run.first.arch}, eps {show_eps(group.key.norm, run.first.eps)}"


def _table1_figure(group: Group, rows: list[list]) -> Figure:
    panels = {}
    for mode in group.modes:
        own = [row for row in rows if row[0] == mode]
        tasks = [row[1] for row in own]
        drawn = [
            series("standard", tasks, [row[5] for row in own]),
            series("robust", tasks, [row[3] for row in own]),
        ]
        for label, place in (("standard (paper)", 9), ("robust (paper)", 8)):
            if any(row[place] is not None for row in own):
                drawn.append(Series(label, tasks, [row[place] for row in own], published=True))
        panels[mode] = drawn
    return Figure(
        "table1" + group.suffix,
        "bars",
        "Best robust and best standard networks",
        "task",
        "accuracy, %",
        panels,
    )


def bars(results: Results, group: Group) -> list[Section]:
    """Figures 2 and 3: each architecture by itself."""
    return [_bars(group, mode) for mode in group.modes]


def _bars(group: Group, mode: str) -> Section:
    rows, runs, panels, found = [], [], {}, 0
    for task in group.tasks:
        pairs = []
        for arch in group.archs:
            row = group.row(mode, task, arch)
            standard = row.get(0.0)
            robust = best(row.values(), robust=True)
            runs += row.values()
            pairs.append((value(standard), value(robust)))
            found += sum(v is not None for v in pairs[-1])
            theirs = (published.best_run(mode, task, arch) or {}) if group.reference else {}
            eps = show_eps(group.key.norm, robust.first.eps) if robust else ""
            paper = [theirs.get("accuracy"), f"{theirs['eps']:g}" if theirs else ""]
            rows.append([task, arch, *pairs[-1], eps, minus(*pairs[-1][::-1]), *paper])
        if any(v for pair in pairs for v in pair):
            archs = [*group.archs]
            panels[task] = [
                series(label, archs, [pair[i] for pair in pairs])
                for i, label in enumerate(("standard", "robust"))
            ]
    number = PAPER_FIGURES[mode]
    text = [
        f"Standard and best robust network of each architecture, {mode} transfer, percent; mean "
        "and ends over the trials. The best eps is that of the test images, among "
        f"{len(group.eps)}: see the section on the choice of eps."
    ]
    if group.reference:
        text.append(
            "The paper's figure has no numbers; beside ours stands the best single run "
            "that its authors published, whatever its eps."
        )
    title = f"Figure {number}: {mode} transfer by architecture"
    figure = Figure(
        f"figure{number}{group.suffix}", "bars", title, "architecture", "accuracy, %", panels
    )
    heads = columns(
        "task",
        "architecture",
        ("standard", 2, "high"),
        ("robust", 2, "high"),
        "eps",
        ("difference", 2),
        ("paper: best run", 2),
        "paper: its eps",
    )
    return section(
        group,
        f"figure{number}",
        title,
        runs=runs,
        text=text,
        columns=heads,
        rows=rows,
        figures=[figure],
        found=found,
        wanted=2 * len(group.tasks) * len(group.archs),
    )


def curves(results: Results, group: Group) -> list[Section]:
    """Accuracy against eps, task by task: the paper's appendix."""
    return [_curves(group, mode) for mode in group.modes]


def _curves(group: Group, mode: str) -> Section:
    all_eps = (0.0, *group.eps)
    rows, runs, panels, found = [], [], {}, 0
    for task in group.tasks:
        drawn = []
        for arch in group.archs:
            row = group.row(mode, task, arch)
            values = [value(row.get(eps)) for eps in all_eps]
            runs += row.values()
            found += sum(v is not None for v in values)
            rows.append([task, arch, *values])
            if row:
                drawn.append(series(arch, [*all_eps], values))
        if drawn:
            panels[task] = drawn
    title = f"Accuracy against eps, {mode}"
    name = f"curves-{mode}"
    norm = group.key.norm
    figure = Figure(
        name + group.suffix,
        "curves",
        title,
        f"eps of the pretraining ({norm})",
        "accuracy, %",
        panels,
        log_x=True,
    )
    heads = columns(
        "task", "architecture", *((f"eps {show_eps(norm, eps)}", 2, "high") for eps in all_eps)
    )
    text = [
        "Percent, mean and ends over the trials; eps 0 is the standard network. The paper has "
        "these curves in its appendix, as plots without numbers."
    ]
    return section(
        group,
        name,
        title,
        runs=runs,
        text=text,
        columns=heads,
        rows=rows,
        figures=[figure] if panels else [],
        found=found,
        wanted=len(rows) * len(all_eps),
    )
