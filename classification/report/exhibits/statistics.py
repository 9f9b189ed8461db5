"""Section 4.3, paired differences and average ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from classification.report import crossfit, published, statistics, verdict_words
from classification.report.comparisons import Contest, contest, judged, over_tasks
from classification.report.exhibits.parts import Results, columns, section, value
from classification.report.groups import Group
from classification.report.sections import Figure, Section, Series, Value
from classification.report.verdict_words import COLUMN, interval, outcome, would_tell
from classification.report.verdicts import Missing, Over, Verdict
from robust_backbones.core.eps import show_eps


def _measured(c: Contest) -> Value:
    """The difference of the two best networks, with their runs."""
    return Value(c.measured, trials=min(c.estimate.trials), records=_places(c))


def _places(c: Contest) -> tuple[int, ...]:
    return (*c.robust.places, *c.standard.places)


def selection(results: Results, group: Group) -> list[Section]:
    """Section 4.3: the best eps of each task."""
    contests = {}
    for mode in group.modes:
        for arch in group.archs:
            own = {}  # p-values are corrected within an architecture, as in a study of its own
            for task in group.tasks:
                cells = {
                    eps: group.configurations(mode, task, arch, eps) for eps in (0.0, *group.eps)
                }
                robust = [run for eps, runs in cells.items() if eps for run in runs]
                if c := contest(robust, cells[0.0]):
                    own[mode, task, arch] = c
            contests |= judged(own, results.rules, f"section4-3 {'; '.join(group.key.words)}")
    if not contests:
        return []
    text = [
        "The eps that is best on the test images, and its gain over the standard network. The "
        "cross-fitted gain is reported on other test images and trials than those that choose eps. "
        "The difference of the two gains is the selection bias of a choice among "
        f"{len(group.eps)} eps.",
        verdict_words.how(results.rules),
        *verdict_words.about(contests.values()),
    ]
    if group.reference:
        theirs = published.numbers()["section_4_3"]
        named = ", ".join(f"{eps:g} for {task}" for task, eps in theirs["best_eps"].items())
        text.append(
            f"The paper's best eps: {named}, for the other tasks {theirs['others']}. Its "
            "best run may be one of the standard network, eps 0."
        )
    heads = columns(
        "mode",
        "task",
        "architecture",
        "best eps",
        ("accuracy", 2),
        ("gain", 2),
        ("cross-fitted gain", 2),
        ("selection bias", 2),
        ("p, corrected", 4),
        COLUMN,
        "would tell",
        "recipes differ in",
        "paper: eps",
        "paper: eps of its best run",
    )
    heads, rows = _without_empty(
        heads, [_selection_row(group, key, c) for key, c in contests.items()]
    )
    return [
        section(
            group,
            "section4-3",
            "Section 4.3: the best eps of each task",
            text=text,
            columns=heads,
            rows=rows,
            runs=[run for c in contests.values() for run in (c.robust, c.standard)],
            found=len(contests),
            wanted=len(group.modes) * len(group.archs) * len(group.tasks),
        )
    ]


def _selection_row(group: Group, key: tuple[str, str, str], c: Contest) -> list:
    mode, task, arch = key
    theirs = published.best_run(mode, task, arch) if group.reference else None
    named = published.best_eps(task) if group.reference else None
    return [
        mode,
        task,
        arch,
        show_eps(group.key.norm, c.robust.first.eps),
        value(c.robust),
        _measured(c),
        *_verdict_cells(c),
        "" if named is None else f"{named:g}",
        f"{theirs['eps']:g}" if theirs else "",
    ]


def _verdict_cells(c: Contest) -> list:
    """Cells: estimate, selection bias, p, verdict, `would tell`, differing recipe fields."""
    assert c.verdict is not None
    return [
        interval(c.verdict, _places(c)),
        c.bias,
        c.verdict.p,
        outcome(c.verdict),
        would_tell(c.verdict),
        ", ".join(c.differs),
    ]


def _without_empty(heads: list, rows: list[list]) -> tuple[list, list[list]]:
    """Remove the column of differing recipes if it is empty."""
    place = [head.name for head in heads].index("recipes differ in")
    if any(row[place] for row in rows):
        return heads, rows
    return (heads[:place] + heads[place + 1 :], [row[:place] + row[place + 1 :] for row in rows])


def paired(results: Results, group: Group) -> list[Section]:
    """Best robust against best standard network, by the rules."""
    contests = results.contests[group.suffix]
    if not contests:
        return []
    rows, name = [], f"all tasks {'; '.join(group.key.words)}"
    for mode in group.modes:
        own = {task: c for (m, task), c in contests.items() if m == mode}
        rows += [
            [mode, task, _measured(c), *_verdict_cells(c), verdict_words.over(c.verdict)]
            for task, c in own.items()
        ]
        if len(own) > 1:
            whole = over_tasks(own.values(), results.rules, f"{name} {mode}")
            rows.append(_over_tasks(mode, whole))
    heads = columns(
        "mode",
        "task",
        ("difference as measured", 2),
        ("cross-fitted difference", 2),
        ("selection bias", 2),
        ("p, corrected", 4),
        COLUMN,
        "would tell",
        "recipes differ in",
        "interval over",
    )
    heads, rows = _without_empty(heads, rows)
    text = [
        "Best robust minus best standard network over all architectures and configurations, in "
        "percentage points. For the difference as measured, both are chosen on the test images, "
        "the robust one among more networks. The cross-fitted difference is reported on other test "
        "images and trials than those that choose the networks. It is averaged over "
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
            columns=heads,
            rows=rows,
            runs=[run for c in contests.values() for run in (c.robust, c.standard)],
            warned=_warned([c.verdict for c in contests.values() if c.verdict]),
            found=len(contests),
            wanted=len(group.modes) * len(group.tasks),
        )
    ]


def _warned(verdicts: Sequence[Verdict]) -> list[str]:
    found = []
    if any(v.estimate.missing is Missing.TRIALS for v in verdicts):
        found.append(
            "Some networks have too few trials. One trial, or two trials of a single "
            "network, do not show how much seeds matter. Run three trials or "
            "more."
        )
    if any(v.estimate.over == Over.TRIALS for v in verdicts):
        found.append(
            "Some intervals are over trials alone, because predictions are missing. They "
            "are about this test set. Other images may give another "
            "difference."
        )
    if any(v.estimate.unseen for v in verdicts):
        found.append(
            "Some networks were chosen without predictions, by the same images. The "
            "intervals are wide, because they include the selection bias by "
            "images."
        )
    return found


def _over_tasks(mode: str, verdict: Verdict) -> list:
    """The row of all tasks."""
    return [
        mode,
        "all tasks",
        None,
        interval(verdict),
        None,
        verdict.p,
        outcome(verdict),
        would_tell(verdict),
        "",
        verdict_words.over(verdict),
    ]


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
    levels = [(f"eps {show_eps(norm, eps)}", 2, "low") for eps in all_eps]
    heads = columns("mode", "architecture", *levels, ("critical difference", 2), ("p", 4), "tasks")
    text = [
        "Rank of each eps among the networks of an architecture, averaged over the tasks that have "
        "all of them; 1 is the best, eps 0 the standard network. Friedman's test says whether they "
        "differ at all; networks whose ranks differ by less than the critical difference "
        "(Nemenyi, 5 %) cannot be told apart."
    ]
    figure = Figure(
        "ranks" + group.suffix,
        "curves",
        "Average rank of each eps",
        f"eps of the pretraining ({norm})",
        "average rank, 1 is best",
        panels,
        log_x=True,
    )
    return [
        section(
            group,
            "ranks",
            "Average ranks",
            text=text,
            columns=heads,
            rows=rows,
            runs=runs,
            figures=[figure],
            found=found,
            wanted=len(rows),
        )
    ]


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
