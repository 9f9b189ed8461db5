"""Figure 5 and Table 2: transfer accuracy against accuracy on the pretraining data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from classification.report import published, statistics
from classification.report.exhibits.parts import Results, columns, minus, section, series, value
from classification.report.groups import Group
from classification.report.records import Merged, Record
from classification.report.sections import Figure, Section, Series
from robust_backbones import zoo
from robust_backbones.core.eps import show_eps
from robust_backbones.core.files import sha256


class Sources:
    """Accuracy of networks on the data that they were pretrained on."""

    def __init__(self, results: Results):
        self._runs = [run.first for run in results.of_kind("pretrain")]
        self._digests: dict[str, float] | None = None

    def accuracy(self, run: Merged) -> float | None:
        """Percent, clean: the published one, or that of the pretraining's result; else None."""
        if model := zoo.known(run.first.weights):
            return model.accuracy
        if self._digests is None:
            self._digests = dict(filter(None, map(_digest, self._runs)))
        if run.first.weights_sha256 in self._digests:
            return self._digests[run.first.weights_sha256]
        # The same file by its place, for pretrainings whose weights are not beside their result.
        tail = Path(run.first.weights).parts[-2:]
        same = [r for r in self._runs if Path(r.weights).parts[-2:] == tail]
        same = [r for r in same if not Path(r.weights).is_file()]
        return same[0].accuracies[0] if len(same) == 1 else None


def _digest(record: Record) -> tuple[str, float] | None:
    path = Path(record.weights)
    return (sha256(path), record.accuracies[0]) if path.is_file() else None


def figure5(results: Results, group: Group) -> list[Section]:
    """Transfer accuracy against the accuracy on the pretraining data."""
    sources, rows, used, figures, found = Sources(results), [], [], [], 0
    name = "ImageNet" if group.reference else (group.key.pretrained_on or "pretraining")
    for mode in group.modes:
        panels = {}
        for task in group.tasks:
            pairs = [(sources.accuracy(run), run) for run in group.networks(mode, task)]
            pairs = [(x, run) for x, run in pairs if x is not None]
            used += [run for _, run in pairs]
            found += len(pairs)
            rows += _fit_rows(mode, task, pairs)
            if pairs:
                panels[task] = _clouds(pairs, group)
        if panels:
            figures.append(
                Figure(
                    f"figure5-{mode}{group.suffix}",
                    "scatter",
                    f"{name} and transfer accuracy, {mode}",
                    f"{name} accuracy, %",
                    "transfer accuracy, %",
                    panels,
                )
            )
    text = [
        f"Does a network with a higher {name} accuracy transfer better? Each point of the figures "
        "is a network; the table has the line of least squares through all of them, through the "
        "standard and through the robust ones: points of transfer per point of the source, and R².",
        "The paper's figure has no numbers.",
    ]
    heads = columns("mode", "task", "networks", ("number", 0), ("slope", 4), ("R²", 2))
    wanted = len(group.modes) * len(group.tasks) * len(group.archs) * (1 + len(group.eps))
    return [
        section(
            group,
            "figure5",
            f"Figure 5: {name} accuracy against transfer accuracy",
            runs=used,
            text=text,
            columns=heads,
            rows=rows,
            figures=figures,
            found=found,
            wanted=max(wanted, found),
        )
    ]


def _fit_rows(mode: str, task: str, pairs: list[tuple[float, Merged]]) -> list[list]:
    kinds = {"all": (False, True), "standard": (False,), "robust": (True,)}
    rows = []
    for kind, sides in kinds.items():
        own = [(x, run.mean) for x, run in pairs if bool(run.first.eps) in sides]
        if own:
            slope, _, r2 = statistics.fit(*zip(*own, strict=True)) or (None, None, None)
            rows.append([mode, task, kind, len(own), slope, r2])
    return rows


def _clouds(pairs: list[tuple[float, Merged]], group: Group) -> list[Series]:
    """A cloud for each architecture."""
    clouds = []
    for arch in dict.fromkeys(run.first.arch for _, run in pairs):
        own = [(x, run) for x, run in pairs if run.first.arch == arch]
        labels = [f"eps {show_eps(group.key.norm, run.first.eps)}" for _, run in own]
        clouds.append(
            series(arch, [x for x, _ in own], [value(run) for _, run in own], labels=labels)
        )
    return clouds


def table2(results: Results, group: Group) -> list[Section]:
    """Architectures with the same eps: the paper's six on CIFAR-10, or one's own on every task."""
    if group.reference:
        archs, levels = tuple(published.numbers()["table2"]["archs"]), (0.0, 3.0)
        places = [("full-network", "cifar10")]
    else:
        archs, levels = group.archs, (0.0, *group.eps[-1:])
        places = [(mode, task) for mode in group.modes for task in group.tasks]
    if len(archs) < 2:
        return []
    sources, rows, fits, used, panels = Sources(results), [], [], [], {}
    for mode, task in places:
        points: dict[float, list] = {eps: [] for eps in levels}
        for arch in archs:
            row = [mode, task, arch]
            for eps in levels:
                run = group.cell(mode, task, arch, eps)
                x = sources.accuracy(run) if run else None
                theirs = published.table2(arch, eps, "cifar10") if group.reference else None
                row += [x, value(run), theirs, minus(value(run), theirs)]
                if run:
                    used.append(run)
                    points[eps].append((x, run))
            if any(cell is not None for cell in (row[4], row[-3])):
                rows.append(row)
        fits += [_fit(mode, task, eps, own, group) for eps, own in points.items() if own]
        if any(points.values()):
            panels[f"{task}, {mode}"] = _lines(points, group)
    if not rows:
        return [_wanted_only(group, 2 * len(archs) * len(places))]
    return _table2_sections(group, levels, rows, fits, used, panels, len(archs) * len(places))


def _wanted_only(group: Group, wanted: int) -> Section:
    return section(group, "table2", "Table 2", runs=[], text=[], columns=[], rows=[], wanted=wanted)


def _fit(
    mode: str, task: str, eps: float, own: list[tuple[float | None, Merged]], group: Group
) -> list:
    pairs = [(x, run.mean) for x, run in own if x is not None]
    slope, _, r2 = (statistics.fit(*zip(*pairs, strict=True)) if pairs else None) or (None,) * 3
    table = published.numbers()["table2"] if group.reference else {}
    key = f"eps{eps:g}"
    theirs = [table["slope"][key], table[key]["r2"]] if key in table else [None, None]
    return [mode, task, f"eps {eps:g}", len(pairs), slope, r2, *theirs]


def _lines(points: dict, group: Group) -> list[Series]:
    drawn, table = [], published.numbers()["table2"] if group.reference else {}
    for eps, own in points.items():
        own = [(x, run) for x, run in own if x is not None]
        line = statistics.fit([x for x, _ in own], [run.mean for _, run in own])
        labels = [run.first.arch for _, run in own]
        drawn.append(
            series(
                f"eps {eps:g}",
                [x for x, _ in own],
                [value(run) for _, run in own],
                labels=labels,
                fit=line and line[:2],
            )
        )
        if theirs := table.get(f"eps{eps:g}"):
            line = statistics.fit(theirs["imagenet"], theirs["cifar10"])
            drawn.append(
                Series(
                    f"eps {eps:g} (paper)",
                    theirs["imagenet"],
                    theirs["cifar10"],
                    labels=table["archs"],
                    fit=line and line[:2],
                    published=True,
                )
            )
    return drawn


def _table2_sections(
    group: Group,
    levels: Sequence[float],
    rows: list[list],
    fits: list[list],
    used: list[Merged],
    panels: dict,
    wanted: Any,
) -> list[Section]:
    heads = [
        (f"eps {eps:g}: {name}", 2)
        for eps in levels
        for name in ("source", "ours", "paper", "ours - paper")
    ]
    text = [
        "Architectures of the same eps: the higher the accuracy on the pretraining data, the "
        "higher that of the transfer? Percent."
    ]
    if group.reference:
        text.append(
            "Source accuracies are those of the published files; the paper's table has up "
            "to 0.9 points less at eps 3. Which architecture is which letter of the "
            "paper's table is inferred from them."
        )
    title = "Table 2: architectures"
    axes = ("accuracy on the pretraining data, %", "transfer accuracy, %")
    figure = Figure(
        "table2" + group.suffix, "scatter", "Source and transfer accuracy", *axes, panels
    )
    common = {"runs": used, "found": len(used), "wanted": wanted * len(levels)}
    lines = columns(
        "mode",
        "task",
        "networks",
        ("number", 0),
        ("slope", 4),
        ("R²", 2),
        ("paper: slope", 4),
        ("paper: R²", 2),
    )
    return [
        section(
            group,
            "table2",
            title,
            text=text,
            columns=columns("mode", "task", "architecture", *heads),
            rows=rows,
            figures=[figure],
            **common,
        ),
        section(
            group,
            "table2-fit",
            f"{title}, linear fits",
            text=[
                "Points of transfer per point "
                "of the source, least squares; of fewer than three architectures there is none."
            ],
            columns=lines,
            rows=fits,
            **common,
        ),
    ]
