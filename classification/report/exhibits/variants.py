"""Figures 6 to 8: wider networks, coarser images, and textures."""

from __future__ import annotations

from classification.report.exhibits.accuracy import best
from classification.report.exhibits.parts import (
    Results,
    columns,
    minus,
    section,
    series,
    value,
    warnings,
)
from classification.report.groups import REFERENCE, Group, stylized
from classification.report.records import Record
from classification.report.sections import Figure, Section
from robust_backbones import zoo
from robust_backbones.core.eps import show_eps

LINES = 5  # of eps in a panel: more cannot be told apart


def figure6(results: Results, group: Group) -> list[Section]:
    """Accuracy against width, of networks that differ in nothing else."""
    rows, used, figures, levels = [], [], [], (0.0, *group.eps)
    widths = _widths(group)
    if len(widths) < 2:
        return []
    step = max(1, -(-len(levels) // LINES))
    for mode in group.modes:
        panels = {}
        for task in group.tasks:
            drawn = []
            for eps in levels:
                runs = [group.cell(mode, task, arch, eps) for arch in widths.values()]
                used += filter(None, runs)
                values = [value(run) for run in runs]
                rows.append([mode, task, show_eps(group.key.norm, eps), *values])
                if any(values) and levels.index(eps) % step == 0:
                    label = f"eps {show_eps(group.key.norm, eps)}" if eps else "standard"
                    drawn.append(series(label, [*widths], values))
            if drawn:
                panels[task] = drawn
        if panels:
            axes = ("width, multiple of the narrowest", "accuracy, %")
            figures.append(
                Figure(f"figure6-{mode}{group.suffix}", "curves", f"Width, {mode}", *axes, panels)
            )
    rows = [row for row in rows if any(row[3:])]
    heads = columns(
        "mode",
        "task",
        "eps",
        *((f"{arch} (x{width:g})", 2, "high") for width, arch in widths.items()),
    )
    text = [
        f"Does a wider network transfer better? {', '.join(widths.values())} differ in width "
        "only. The paper's figure has no numbers."
    ]
    wanted = len(group.modes) * len(group.tasks) * len(levels) * len(widths)
    return [
        section(
            group,
            "figure6",
            "Figure 6: width",
            runs=used,
            text=text,
            columns=heads,
            rows=rows,
            figures=figures,
            found=len(used),
            wanted=wanted,
        )
    ]


def _widths(group: Group) -> dict[float, str]:
    """Multiple of the narrowest -> architecture, of the largest family that there is."""
    families: dict[tuple, dict[int, str]] = {}
    for arch in group.archs:
        if isinstance(row := zoo.ARCHS.get(arch), zoo.ResNetArch):
            own = families.setdefault((row.blocks, row.bottleneck, row.groups), {})
            own[row.width_per_group] = arch
    if not families:
        return {}
    widest = max(families.values(), key=len)
    return {width / min(widest): arch for width, arch in sorted(widest.items())}


def figure7(results: Results, group: Group) -> list[Section]:
    """Images that were first taken down to few pixels."""
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
                if not any(row for pixels, row in sizes.items() if pixels):
                    continue
                for pixels, row in sizes.items():
                    values = [value(row.get(eps)) for eps in levels]
                    used += row.values()
                    best, _ = max(row.items(), key=lambda x: x[1].mean, default=(None, None))
                    shown = "" if best is None else show_eps(group.key.norm, best)
                    size = f"{pixels} pixels" if pixels else "original"
                    rows.append([mode, task, arch, size, shown, *values])
                    if row:
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
    numbers = [(f"eps {show_eps(group.key.norm, eps)}", 2, "high") for eps in levels]
    heads = columns("mode", "task", "architecture", "images", "best eps", *numbers)
    text = [
        "Images are first reduced to few pixels, shorter side, and then enlarged again: is it "
        "the coarseness of CIFAR's images that makes a larger eps best? The best eps is that "
        "of the test images. The paper's figure has no numbers."
    ]
    return [
        section(
            group,
            "figure7",
            "Figure 7: downscaled images",
            runs=used,
            text=text,
            columns=heads,
            rows=rows,
            figures=figures,
            found=len(used),
            wanted=len(rows) * len(levels),
        )
    ]


def figure8(results: Results, group: Group) -> list[Section]:
    """Stylized images: how networks do on them, and what a network that learnt on them is worth."""
    rows, used, panels = [], [], {}
    for task in filter(stylized, group.runs):
        for mode in group.modes:
            for arch in dict.fromkeys(run.first.arch for run in group.networks(mode, task)):
                rows.append(_styled_row(group, None, mode, task, arch, used))
    source = _styled_source(results, group)
    for mode in group.modes if source else ():
        assert source is not None
        for task in source.tasks:
            own = [_styled_row(group, source, mode, task, arch, used) for arch in source.archs]
            own = [row for row in own if row[5] is not None]
            rows += own
            if own:
                archs = [row[2] for row in own]
                panels[f"{task}, {mode}"] = [
                    series("standard", archs, [row[3] for row in own]),
                    series("robust", archs, [row[4] for row in own]),
                    series("stylized", archs, [row[5] for row in own]),
                ]
    if not rows:
        return []
    heads = columns(
        "mode",
        "task",
        "architecture",
        ("standard", 2, "high"),
        ("best robust", 2, "high"),
        ("learnt on stylized", 2, "high"),
        ("robust - stylized", 2),
    )
    text = [
        "Networks that see shapes rather than textures: adversarially trained ones, and those "
        "trained on Stylized ImageNet. Transfer to stylized images, and to the tasks from a "
        "network that learnt on them; the best robust eps is that of the test images. The "
        "paper's figure has no numbers."
    ]
    figure = Figure(
        "figure8" + group.suffix, "bars", "Stylized ImageNet", "architecture", "accuracy, %", panels
    )
    found = sum(cell is not None for row in rows for cell in row[3:6])
    return [
        section(
            group,
            "figure8",
            "Figure 8: Stylized ImageNet",
            runs=used,
            text=text,
            columns=heads,
            rows=rows,
            figures=[figure] if panels else [],
            found=found,
            wanted=sum(2 + bool(source) for _ in rows),
        )
    ]


def evaluated(results: Results) -> list[Section]:
    """Figure 8: networks of ImageNet on stylized images, as they are."""
    runs = [run for run in results.of_kind("robustness") if stylized(run.first.dataset)]
    rows = [[run.first.dataset, _network(run.first), value(run)] for run in runs]
    text = [
        "Accuracy on images whose textures were exchanged, of networks that have not seen such "
        "ones, percent. The paper's figure has no numbers."
    ]
    return [
        Section(
            "figure8-evaluated",
            "Figure 8: Stylized ImageNet, without transfer",
            text,
            columns("data", "network", ("accuracy", 2)),
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


def _styled_source(results: Results, group: Group) -> Group | None:
    """Networks that learnt on the stylized form of what the group's learnt on."""
    for other in results.groups:
        mine, theirs = vars(group.key).copy(), vars(other.key).copy()
        origin, name = mine.pop("pretrained_on"), theirs.pop("pretrained_on")
        if stylized(name) and mine == theirs and (origin in name or origin == REFERENCE):
            return other
    return None


def _styled_row(
    group: Group, source: Group | None, mode: str, task: str, arch: str, used: list
) -> list:
    row = group.row(mode, task, arch)
    standard, robust = (best(row.values(), robust=side) for side in (False, True))
    styled = source.cell(mode, task, arch, 0.0) if source else None
    used += filter(None, (standard, robust, styled))
    cells = [value(run) for run in (standard, robust, styled)]
    return [mode, task, arch, *cells, minus(cells[1], cells[2])]
