"""Figure 5 and Table 2: transfer accuracy against accuracy on the pretraining data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from classification.report import published, statistics
from classification.report.contents.parts import (
    ARCH,
    MODE,
    TASK,
    Results,
    minus,
    section,
    series,
    value,
)
from classification.report.groups import Group
from classification.report.records import Merged, Record
from classification.report.sections import Column, Figure, Kind, Row, Section, Series
from robust_backbones import zoo
from robust_backbones.core.eps import show_eps
from robust_backbones.core.files import sha256

FIT = [
    MODE,
    TASK,
    Column("networks"),
    Column("count", "number", Kind.COUNT),
    Column("slope", kind=Kind.SLOPE),
    Column("r_squared", "R²", Kind.R_SQUARED),
    Column("paper_slope", "paper: slope", Kind.SLOPE, paper=True),
    Column("paper_r_squared", "paper: R²", Kind.R_SQUARED, paper=True),
]
# Accuracy of a network on its pretraining data, percent (None: unknown), and the transfer run.
Point = tuple[float | None, Merged]


class PretrainingAccuracy:
    """Accuracy of networks on the data that they were pretrained on."""

    def __init__(self, results: Results):
        self._runs = [run.first for run in results.of_kind("pretrain")]
        self._by_digest: dict[str, float] | None = None

    def of(self, run: Merged) -> float | None:
        """Return the accuracy of a run's network on its pretraining data.

        Returns:
            The published accuracy, or the accuracy in the result of the pretraining, percent; None
            if both are unknown.
        """
        if model := zoo.known(run.first.weights):
            return model.accuracy
        if self._by_digest is None:
            self._by_digest = dict(filter(None, map(_digest, self._runs)))
        if run.first.weights_sha256 in self._by_digest:
            return self._by_digest[run.first.weights_sha256]
        # If the weight file was moved away from its pretraining result, match the end of the path.
        tail = Path(run.first.weights).parts[-2:]
        same = [r for r in self._runs if Path(r.weights).parts[-2:] == tail]
        same = [r for r in same if not Path(r.weights).is_file()]
        return same[0].accuracies[0] if len(same) == 1 else None


def _digest(record: Record) -> tuple[str, float] | None:
    path = Path(record.weights)
    return (sha256(path), record.accuracies[0]) if path.is_file() else None


def figure5(results: Results, group: Group) -> list[Section]:
    """Build Figure 5: transfer accuracy against the accuracy on the pretraining data."""
    accuracy, rows, used, figures = PretrainingAccuracy(results), [], [], []
    name = "ImageNet" if group.reference else (group.key.pretrained_on or "pretraining")
    for mode in group.modes:
        panels = {}
        for task in group.tasks:
            points = [(accuracy.of(run), run) for run in group.networks(mode, task)]
            points = [(x, run) for x, run in points if x is not None]
            used += [run for _, run in points]
            rows += _fit_rows(mode, task, points)
            if points:
                panels[task] = _clouds(points, group)
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
        "is a network. The table has the least-squares lines through all networks, through the "
        "standard and through the robust ones. The slope is in points of transfer accuracy per "
        f"point of {name} accuracy.",
        "The paper does not list the values in its figure, so this section has no comparison with "
        "the paper.",
    ]
    wanted = len(group.modes) * len(group.tasks) * len(group.archs) * (1 + len(group.eps))
    return [
        section(
            group,
            "figure5",
            f"Figure 5: {name} accuracy against transfer accuracy",
            runs=used,
            text=text,
            columns=FIT,
            rows=rows,
            figures=figures,
            found=len(used),
            wanted=max(wanted, len(used)),
        )
    ]


def _fit_rows(mode: str, task: str, points: Sequence[Point]) -> list[Row]:
    kinds = {"all": (False, True), "standard": (False,), "robust": (True,)}
    rows = []
    for kind, sides in kinds.items():
        own = [(x, run) for x, run in points if bool(run.first.eps) in sides]
        if own:
            rows.append({"mode": mode, "task": task, "networks": kind, **_fit(own)})
    return rows


def _fit(points: Sequence[Point]) -> Row:
    """Fit a line through the points with a known pretraining accuracy.

    Returns:
        Cells for the number of these points, and for the slope and R² of the line.
    """
    pairs = [(x, run.mean) for x, run in points if x is not None]
    slope, _, r_squared = (statistics.fit(*zip(*pairs, strict=True)) if pairs else None) or (
        None,
        None,
        None,
    )
    return {"count": len(pairs), "slope": slope, "r_squared": r_squared}


def _clouds(points: Sequence[Point], group: Group) -> list[Series]:
    """Return one series of points for each architecture."""
    clouds = []
    for arch in dict.fromkeys(group.names[id(run)] for _, run in points):
        own = [(x, run) for x, run in points if group.names[id(run)] == arch]
        labels = [f"eps {show_eps(group.key.norm, run.first.eps)}" for _, run in own]
        clouds.append(
            series(arch, [x for x, _ in own], [value(run) for _, run in own], labels=labels)
        )
    return clouds


def table2(results: Results, group: Group) -> list[Section]:
    """Build Table 2: compare architectures with the same eps.

    For networks like the paper's, the table has its six architectures on CIFAR-10. Otherwise, it
    has the user's architectures on all tasks.
    """
    if group.reference:
        archs, levels = tuple(published.numbers()["table2"]["archs"]), (0.0, 3.0)
        pairs = [("full-network", "cifar10")]
    else:
        archs, levels = group.archs, (0.0, *group.eps[-1:])
        pairs = [(mode, task) for mode in group.modes for task in group.tasks]
    if len(archs) < 2:
        return []
    accuracy, rows, fits, used, panels = PretrainingAccuracy(results), [], [], [], {}
    for mode, task in pairs:
        points: dict[float, list[Point]] = {eps: [] for eps in levels}
        for arch in archs:
            row: Row = {"mode": mode, "task": task, "architecture": arch}
            for eps in levels:
                run = group.cell(mode, task, arch, eps)
                x = accuracy.of(run) if run else None
                paper = published.table2(arch, eps, "cifar10") if group.reference else None
                row |= {
                    f"eps_{eps:g}_source": x,
                    f"eps_{eps:g}_ours": value(run),
                    f"eps_{eps:g}_paper": paper,
                    f"eps_{eps:g}_minus_paper": minus(value(run), paper),
                }
                if run:
                    used.append(run)
                    points[eps].append((x, run))
            if any(row[f"eps_{eps:g}_ours"] is not None for eps in levels):
                rows.append(row)
        for eps, own in points.items():
            if own:
                fits.append(_table2_fit(group, mode, task, eps, own))
        if any(points.values()):
            panels[f"{task}, {mode}"] = _lines(points, group)
    wanted = len(levels) * len(archs) * len(pairs)
    if not rows:
        return [
            section(
                group, "table2", "Table 2", runs=[], text=[], columns=[], rows=[], wanted=wanted
            )
        ]
    return _table2_sections(group, levels, rows, fits, used, panels, wanted)


def _table2_fit(group: Group, mode: str, task: str, eps: float, points: list[Point]) -> Row:
    table = published.numbers()["table2"] if group.reference else {}
    key = f"eps{eps:g}"
    return {
        "mode": mode,
        "task": task,
        "networks": f"eps {eps:g}",
        **_fit(points),
        "paper_slope": table["slope"][key] if key in table else None,
        "paper_r_squared": table[key]["r2"] if key in table else None,
    }


def _lines(points: dict[float, list[Point]], group: Group) -> list[Series]:
    """Return the points and fitted line of each eps, from our results and from the paper."""
    drawn, table = [], published.numbers()["table2"] if group.reference else {}
    for eps, every in points.items():
        own = [(x, run) for x, run in every if x is not None]
        line = statistics.fit([x for x, _ in own], [run.mean for _, run in own])
        drawn.append(
            series(
                f"eps {eps:g}",
                [x for x, _ in own],
                [value(run) for _, run in own],
                labels=[run.first.arch for _, run in own],
                fit=line and line[:2],
            )
        )
        if paper := table.get(f"eps{eps:g}"):
            line = statistics.fit(paper["imagenet"], paper["cifar10"])
            drawn.append(
                Series(
                    f"eps {eps:g} (paper)",
                    paper["imagenet"],
                    paper["cifar10"],
                    labels=table["archs"],
                    fit=line and line[:2],
                    published=True,
                )
            )
    return drawn


def _table2_sections(
    group: Group,
    levels: Sequence[float],
    rows: list[Row],
    fits: list[Row],
    used: list[Merged],
    panels: dict[str, list[Series]],
    wanted: int,
) -> list[Section]:
    columns = [MODE, TASK, ARCH]
    for eps in levels:
        key, heading = f"eps_{eps:g}", f"eps {eps:g}"
        columns += [
            Column(f"{key}_source", f"{heading}: source", Kind.ACCURACY),
            Column(f"{key}_ours", f"{heading}: ours", Kind.ACCURACY),
            Column(f"{key}_paper", f"{heading}: paper", Kind.ACCURACY, paper=True),
            Column(f"{key}_minus_paper", f"{heading}: ours - paper", Kind.DIFFERENCE, paper=True),
        ]
    text = [
        "Architectures with the same eps: does a higher accuracy on the pretraining data (source) "
        "go with a higher transfer accuracy? In percent."
    ]
    if group.reference:
        text.append(
            "Source accuracies belong to the published files. The paper's table has up to 0.9 "
            "points less at eps 3. The architecture of each letter in the paper's table is "
            "inferred from them."
        )
    title = "Table 2: architectures"
    axes = ("accuracy on the pretraining data, %", "transfer accuracy, %")
    figure = Figure(
        "table2" + group.suffix, "scatter", "Source and transfer accuracy", *axes, panels
    )
    return [
        section(
            group,
            "table2",
            title,
            text=text,
            columns=columns,
            rows=rows,
            figures=[figure],
            runs=used,
            found=len(used),
            wanted=wanted,
        ),
        section(
            group,
            "table2-fit",
            f"{title}, linear fits",
            text=[
                "Least-squares lines through the architectures, in points of transfer accuracy "
                "per point of source accuracy. A line needs three architectures."
            ],
            columns=FIT,
            rows=fits,
            runs=used,
            found=len(used),
            wanted=wanted,
        ),
    ]
