"""Figures 6 to 8: wider networks, downscaled images, and stylized images."""

from __future__ import annotations

from dataclasses import replace

from classification.report.contents.accuracy import best
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
    warnings,
)
from classification.report.groups import REFERENCE, Group, stylized
from classification.report.networks import variant
from classification.report.records import Merged, Record
from classification.report.sections import Column, Figure, Kind, Row, Section
from robust_backbones.archs import ARCHS, ResNetArch
from robust_backbones.core.eps import show_eps

MAX_LINES = 5  # maximum number of lines in a panel, so that readers can distinguish them
SIDES = ("standard", "robust", "stylized")
FIGURE8 = [
    MODE,
    TASK,
    ARCH,
    Column("standard", kind=Kind.ACCURACY, compared=True),
    Column("robust", "best robust", Kind.ACCURACY, compared=True),
    Column("stylized", "trained on stylized", Kind.ACCURACY, compared=True),
    Column("stylized_network", "network trained on stylized", optional=True),
    Column("robust_minus_stylized", "robust - stylized", Kind.DIFFERENCE),
]


def figure6(results: Results, group: Group) -> list[Section]:
    """Build Figure 6: accuracy against width, for networks that differ only in width."""
    widths = _widths(group)
    if len(widths) < 2:
        return []
    rows: list[Row] = []
    used, figures, levels = [], [], (0.0, *group.eps)
    columns = [
        Column(arch, f"{arch} (x{width:g})", Kind.ACCURACY, compared=True)
        for width, arch in widths.items()
    ]
    step = max(1, -(-len(levels) // MAX_LINES))
    for mode in group.modes:
        panels = {}
        for task in group.tasks:
            drawn = []
            for number, eps in enumerate(levels):
                runs = [group.cell(mode, task, arch, eps) for arch in widths.values()]
                if not any(runs):
                    continue
                used += runs
                words = show_eps(group.key.norm, eps)
                cells = {arch: value(run) for arch, run in zip(widths.values(), runs, strict=True)}
                rows.append({"mode": mode, "task": task, "eps": words, **cells})
                if number % step == 0:
                    label = f"eps {words}" if eps else "standard"
                    drawn.append(series(label, [*widths], cells.values()))
            if drawn:
                panels[task] = drawn
        if panels:
            axes = ("width, multiple of the narrowest", "accuracy, %")
            figures.append(
                Figure(f"figure6-{mode}{group.suffix}", "curves", f"Width, {mode}", *axes, panels)
            )
    text = [
        f"Does a wider network transfer better? {', '.join(widths.values())} differ only in "
        "width. The paper's figure has no numbers."
    ]
    return [
        section(
            group,
            "figure6",
            "Figure 6: width",
            runs=used,
            text=text,
            columns=[MODE, TASK, Column("eps"), *columns],
            rows=rows,
            figures=figures,
            found=sum(run is not None for run in used),
            wanted=len(group.modes) * len(group.tasks) * len(levels) * len(widths),
        )
    ]


def _widths(group: Group) -> dict[float, str]:
    """Map relative widths to architectures that differ only in width.

    The narrowest architecture has the relative width 1. If several families of architectures differ
    only in width, the largest family is used.
    """
    families: dict[tuple, dict[int, str]] = {}
    for arch in group.archs:
        if isinstance(row := ARCHS.get(arch), ResNetArch):
            own = families.setdefault((row.blocks, row.bottleneck, row.groups), {})
            own[row.width_per_group] = arch
    if not families:
        return {}
    widest = max(families.values(), key=len)
    return {width / min(widest): arch for width, arch in sorted(widest.items())}


def figure7(results: Results, group: Group) -> list[Section]:
    """Build Figure 7: accuracy on images that were downscaled and enlarged again."""
    levels = (0.0, *group.eps)
    rows, used, figures = [], [], []
    for mode in group.modes:
        panels = {}
        for task in group.tasks:
            for arch in group.archs:
                sizes = {
                    pixels: group.row(mode, task, arch, pixels)
                    for pixels in (None, *group.downscales)
                }
                if not any(runs for pixels, runs in sizes.items() if pixels):
                    continue
                for pixels, runs in sizes.items():
                    values = [value(runs.get(eps)) for eps in levels]
                    used += runs.values()
                    top, _ = max(runs.items(), key=lambda x: x[1].mean, default=(None, None))
                    size = f"{pixels} pixels" if pixels else "original"
                    rows.append(
                        {
                            "mode": mode,
                            "task": task,
                            "architecture": arch,
                            "images": size,
                            "best_eps": "" if top is None else show_eps(group.key.norm, top),
                            **eps_cells(levels, values),
                        }
                    )
                    if runs:
                        drawn = series(f"{arch}, {size}", [*levels], values)
                        panels.setdefault(task, []).append(drawn)
        if panels:
            figures.append(
                Figure(
                    f"figure7-{mode}{group.suffix}",
                    "curves",
                    f"Downscaled images, {mode}",
                    f"eps of the pretraining ({group.key.norm})",
                    "accuracy, %",
                    panels,
                    log_x=True,
                )
            )
    if not rows:
        return []
    columns = [eps_column(eps, group.key.norm) for eps in levels]
    text = [
        "Images are downscaled to few pixels at the shorter side and enlarged again. Is the low "
        "resolution of CIFAR's images the reason that a larger eps is best there? The best eps is "
        "chosen on the test images. The paper's figure has no numbers."
    ]
    return [
        section(
            group,
            "figure7",
            "Figure 7: downscaled images",
            runs=used,
            text=text,
            columns=[MODE, TASK, ARCH, Column("images"), Column("best_eps"), *columns],
            rows=rows,
            figures=figures,
            found=len(used),
            wanted=len(rows) * len(levels),
        )
    ]


def figure8(results: Results, group: Group) -> list[Section]:
    """Build Figure 8: transfer to stylized images, and transfer from networks trained on them."""
    rows, used, panels = [], [], {}
    for task in filter(stylized, group.runs):
        for mode in group.modes:
            for arch in dict.fromkeys(run.first.arch for run in group.networks(mode, task)):
                rows.append(_figure8_row(group, mode, task, arch, used))
    sources = _stylized_sources(results, group)
    for mode in group.modes:
        for task in dict.fromkeys(task for source in sources for task in source.tasks):
            trained = [run for source in sources for run in source.networks(mode, task)]
            own = [_figure8_row(group, mode, task, run.first.arch, used, run) for run in trained]
            rows += own
            if own:
                networks = [f"{row['architecture']} ({row['stylized_network']})" for row in own]
                panels[f"{task}, {mode}"] = [
                    series(side, networks, [row[side] for row in own]) for side in SIDES
                ]
    if not rows:
        return []
    text = [
        "Adversarially trained networks and networks trained on Stylized ImageNet rely on shapes "
        "rather than textures. The table has transfer to stylized images, and transfer from "
        "networks that were trained on them. The best robust eps is chosen on the test images. The "
        "paper's figure has no numbers."
    ]
    axes = ("network", "accuracy, %")
    figure = Figure("figure8" + group.suffix, "bars", "Stylized ImageNet", *axes, panels)
    return [
        section(
            group,
            "figure8",
            "Figure 8: Stylized ImageNet",
            runs=used,
            text=text,
            columns=FIGURE8,
            rows=rows,
            figures=[figure] if panels else [],
            found=sum(row[side] is not None for row in rows for side in SIDES),
            wanted=len(rows) * (2 + bool(sources)),
        )
    ]


def evaluated(results: Results) -> list[Section]:
    """Build the part of Figure 8 without transfer: accuracy of networks on stylized images."""
    runs = [run for run in results.of_kind("robustness") if stylized(run.first.dataset)]
    rows: list[Row] = [
        {"data": run.first.dataset, "network": _network(run.first), "accuracy": value(run)}
        for run in runs
    ]
    text = [
        "Accuracy on images with exchanged textures, of networks that were not trained on such "
        "images, in percent. The paper's figure has no numbers."
    ]
    return [
        Section(
            "figure8-evaluated",
            "Figure 8: Stylized ImageNet, without transfer",
            text,
            [Column("data"), Column("network"), Column("accuracy", kind=Kind.ACCURACY)],
            rows,
            [],
            warnings(runs),
            len(rows),
            len(rows),
        )
    ]


def _network(record: Record) -> str:
    if record.eps is None:
        return record.weights
    return f"{record.arch}, eps {show_eps(record.constraint, record.eps)}"


def _stylized_sources(results: Results, group: Group) -> list[Group]:
    """Find groups of networks that were pretrained on the stylized version of this group's data."""
    origin = group.key.pretrained_on
    return [
        other
        for other in results.groups
        if stylized(name := other.key.pretrained_on)
        if replace(other.key, pretrained_on=origin, norm=group.key.norm) == group.key
        if origin in name or origin == REFERENCE
    ]


def _figure8_row(
    group: Group, mode: str, task: str, arch: str, used: list[Merged], trained: Merged | None = None
) -> Row:
    """Build the table row of one architecture, and append the shown runs to `used`.

    Args:
        group: group of networks that were pretrained on original images.
        mode: transfer mode.
        task: name of the task.
        arch: name of the architecture.
        used: list to which the runs are appended.
        trained: run of a network that was pretrained on stylized images, or None.
    """
    runs = [run for run in group.networks(mode, task) if run.first.arch == arch]
    standard, robust = (best(runs, robust=side) for side in (False, True))
    used += filter(None, (standard, robust, trained))
    return {
        "mode": mode,
        "task": task,
        "architecture": arch,
        "standard": value(standard),
        "robust": value(robust),
        "stylized": value(trained),
        "stylized_network": variant(trained.first) if trained else "",
        "robust_minus_stylized": minus(value(robust), value(trained)),
    }
