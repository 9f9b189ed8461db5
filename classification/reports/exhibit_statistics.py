"""Section 4.3, paired differences and average ranks: what of the differences is luck."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from classification.reports import honest, published, statistics
from classification.reports.cells import Group, eps_words
from classification.reports.comparisons import Contest, contest, corrected
from classification.reports.exhibit_parts import Results, columns, section, value
from classification.reports.sections import Figure, Section, Series, Value

HOW = (
    "Differences are over the same seeds. Intervals are 95 %: over test images and trials where "
    "each image's predictions are there for both networks, else over trials alone, by Student's t. "
    "How much trials scatter is pooled over the networks of a task. p-values are corrected for the "
    "number of tasks (Holm)."
)


def interval(difference: statistics.Difference | None, places: tuple = ()) -> Value | None:
    """A difference as a `Value` whose ends are its interval."""
    if difference is None:
        return None
    return Value(difference.mean, difference.low, difference.high, difference.trials, places,
                 f"95 % interval over {difference.over}")  # fmt: skip


def luck(c: Contest) -> float | None:
    """What the choice on the test images adds, points."""
    return None if c.honest is None else c.lucky.mean - c.honest.mean


def _places(c: Contest) -> tuple[int, ...]:
    return (*c.robust.places, *c.standard.places)


def selection(results: Results, group: Group) -> list[Section]:
    """Section 4.3: the best eps of each task."""
    contests = {}
    for mode in group.modes:
        for arch in group.archs:
            own = {}  # corrected for the number of tasks: each architecture is a study of its own
            for task in group.tasks:
                row = group.row(mode, task, arch)
                standard = [row[0.0]] if 0.0 in row else []
                if c := contest([run for eps, run in row.items() if eps], standard):
                    own[mode, task, arch] = c
            contests |= corrected(own)
    if not contests:
        return []
    text = [
        "The eps that is best on the test images, and what it gains over the standard network: as "
        "it stands, and with eps chosen by other test images and trials than it is reported on. "
        "What lies between is the luck of choosing (the winner's curse), here among "
        f"{len(group.eps)} eps.",
        HOW,
    ]
    if group.reference:
        theirs = published.numbers()["section_4_3"]
        named = ", ".join(f"{eps:g} for {task}" for task, eps in theirs["best_eps"].items())
        text.append(f"The paper's best eps: {named}, for the other tasks {theirs['others']}. Its "
                    "best run may be one of the standard network, eps 0.")  # fmt: skip
    heads = columns("mode", "task", "architecture", "best eps", ("accuracy", 2), ("gain", 2),
                    ("honest gain", 2), ("luck", 2), ("p, corrected", 4), "verdict", "paper: eps",
                    "paper: eps of its best run")  # fmt: skip
    return [section(
        group, "section4-3", "Section 4.3: the best eps of each task", text=text, columns=heads,
        rows=[_selection_row(group, key, c) for key, c in contests.items()],
        runs=[run for c in contests.values() for run in (c.robust, c.standard)],
        found=len(contests), wanted=len(group.modes) * len(group.archs) * len(group.tasks),
    )]  # fmt: skip


def _selection_row(group: Group, key: tuple[str, str, str], c: Contest) -> list:
    mode, task, arch = key
    theirs = published.best_run(mode, task, arch) if group.reference else None
    named = published.best_eps(task) if group.reference else None
    return [
        mode, task, arch, eps_words(c.robust.first.eps, group.key.norm), value(c.robust),
        interval(c.lucky, _places(c)), interval(c.honest, _places(c)), luck(c), c.p, c.verdict,
        "" if named is None else f"{named:g}", f"{theirs['eps']:g}" if theirs else "",
    ]  # fmt: skip


def paired(results: Results, group: Group) -> list[Section]:
    """Best robust against best standard network, by the rules."""
    contests = results.contests[group.suffix]
    if not contests:
        return []
    rows, warned = [], []
    for mode in group.modes:
        own = {task: c for (m, task), c in contests.items() if m == mode}
        rows += [
            [mode, task, interval(c.lucky, _places(c)), interval(c.honest, _places(c)), luck(c),
             c.honest.p if c.honest else None, c.p, c.verdict, c.honest.over if c.honest else ""]
            for task, c in own.items()
        ]  # fmt: skip
        if len(own) > 1:
            rows.append(_over_tasks(mode, [c.honest for c in own.values() if c.honest]))
    if any(c.honest is None for c in contests.values()):
        warned.append("Some tasks have neither two trials with the same seeds nor predictions of "
                      "all networks: of them nothing can be said.")  # fmt: skip
    if any(c.honest and c.honest.over == statistics.TRIALS for c in contests.values()):
        warned.append("Some intervals are over trials alone: they leave out that other test images "
                      "would give other differences, and choosing eps on the same images is "
                      "still in them.")  # fmt: skip
    heads = columns("mode", "task", ("difference as it stands", 2), ("honest difference", 2),
                    ("luck", 2), ("p", 4), ("p, corrected", 4), "verdict", "over")  # fmt: skip
    text = [
        "Best robust minus best standard network over all architectures, points of percent. As it "
        "stands, both are chosen on the test images, the robust one among more networks; honestly, "
        "they are chosen by other test images and other trials than the difference is reported on, "
        f"averaged over {honest.SPLITS} random halvings of the images.",
        HOW,
    ]
    return [section(
        group, "paired", "Paired differences and verdicts", text=text, columns=heads, rows=rows,
        runs=[run for c in contests.values() for run in (c.robust, c.standard)], warned=warned,
        found=sum(c.honest is not None for c in contests.values()),
        wanted=len(group.modes) * len(group.tasks),
    )]  # fmt: skip


def _over_tasks(mode: str, found: list[statistics.Difference]) -> list:
    """Tasks as a sample of tasks: Student's interval, and Wilcoxon's signed-rank test."""
    if len(found) < 2:
        return [mode, "all tasks", None, None, None, None, None, statistics.VERDICTS[None], ""]
    means = [d.mean for d in found]
    whole = statistics.over_pairs(means)
    p = float(stats.wilcoxon(means).pvalue) if any(means) else 1.0
    shown = Value(whole.mean, whole.low, whole.high, len(means), (), "95 % interval over tasks")
    return [mode, "all tasks", None, shown, None, p, None, statistics.verdict(whole.mean, p),
            f"{len(means)} tasks (Wilcoxon)"]  # fmt: skip


def ranks(results: Results, group: Group) -> list[Section]:
    """Average ranks of the eps over tasks, for each architecture and for the best of all."""
    all_eps = (0.0, *group.eps)
    rows, panels, runs, found = [], {}, [], 0
    for mode in group.modes:
        drawn = []
        for arch in (*group.archs, None):
            table, used, tasks = _complete(group, mode, arch, all_eps)
            got = statistics.ranks(np.array(table)) if table else None
            label = arch or "best of all"
            means = got.means if got else [None] * len(all_eps)
            rows.append([mode, label, *means, got and got.critical, got and got.p, str(len(tasks))])
            if got:
                runs, found = runs + used, found + 1
                drawn.append(Series(label, [*all_eps], [*means]))
        if drawn:
            panels[mode] = drawn
    if not found:
        return []
    norm = group.key.norm
    levels = [(f"eps {eps_words(eps, norm)}", 2, "low") for eps in all_eps]
    heads = columns("mode", "architecture", *levels, ("critical difference", 2), ("p", 4), "tasks")
    text = [
        "Rank of each eps among the networks of an architecture, averaged over the tasks that have "
        "all of them; 1 is the best, eps 0 the standard network. Friedman's test says whether they "
        "differ at all; networks whose ranks differ by less than the critical difference "
        "(Nemenyi, 5 %) cannot be told apart.",
    ]
    figure = Figure("ranks" + group.suffix, "curves", "Average rank of each eps",
                    f"eps of the pretraining ({norm})", "average rank, 1 is best", panels,
                    log_x=True)  # fmt: skip
    return [section(group, "ranks", "Average ranks", text=text, columns=heads, rows=rows, runs=runs,
                    figures=[figure], found=found, wanted=len(rows))]  # fmt: skip


def _complete(
    group: Group, mode: str, arch: str | None, all_eps: Sequence[float]
) -> tuple[list, list, list]:
    """Accuracies of the tasks that miss no eps: table, the runs, the tasks."""
    archs = group.archs if arch is None else (arch,)
    table, used, tasks = [], [], []
    for task in group.tasks:
        cells = [[group.cell(mode, task, a, eps) for a in archs] for eps in all_eps]
        have = [[cell for cell in own if cell] for own in cells]
        if all(have):
            best = [max(own, key=lambda run: run.mean) for own in have]
            table.append([run.mean for run in best])
            used += best
            tasks.append(task)
    return table, used, tasks
