"""Few training images: accuracy against the number of images per class, with verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from classification.report import verdict_words
from classification.report.comparisons import Contest, with_verdicts
from classification.report.contents.accuracy import ROBUST, STANDARD
from classification.report.contents.parts import ARCH, MODE, TASK, Results, section, series, value
from classification.report.groups import Group, stylized
from classification.report.records import Merged
from classification.report.sections import Column, Figure, Kind, Row, Section
from classification.report.verdict_words import (
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    interval,
    verdict_cells,
)
from robust_backbones.core.eps import show_eps

Cell = tuple[str, str, str]  # mode, task and architecture
Level = tuple[Contest, Group]  # contest, and the group of its runs
COLUMNS = [
    MODE,
    TASK,
    ARCH,
    Column("images_per_class", kind=Kind.COUNT),
    STANDARD,
    ROBUST,
    Column("best_eps"),
    Column("cross_fitted", "cross-fitted difference", Kind.DIFFERENCE),
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    Column("standard_needs", "images per class that the standard network needs", Kind.COUNT),
]


def images_per_class(run: Merged) -> float | None:
    """Return the mean number of training images of a class; None: not recorded."""
    record = run.first
    found = record.metrics.get("images_per_class", record.settings.get("shots"))
    return float(found) if found else None


def shown_groups(results: Results) -> list[Group]:
    """Return the groups that have sections and answers of their own.

    Groups that differ from another group only in a smaller training set are in the section on few
    images. Networks that were pretrained on stylized images appear only in Figure 8.
    """
    few = {
        group.suffix
        for main in results.groups
        for levels in _levels(results, main).values()
        for _, group in levels.values()
        if group is not main
    }
    return [
        group
        for group in results.groups
        if group.suffix not in few and not stylized(group.key.pretrained_on)
    ]


def learning_curves(results: Results, group: Group) -> dict[Cell, dict[float, Contest]]:
    """Map each cell to its contests by the number of images per class, ascending.

    Cells with a single number are dropped. p-values are corrected for the number of tasks and
    numbers of images, for each mode and architecture separately.
    """
    levels = _levels(results, group)
    found: dict[Cell, dict[float, Contest]] = {cell: {} for cell in levels}
    for mode, arch in dict.fromkeys((mode, arch) for mode, _, arch in levels):
        contests = {
            (mode, task, arch, images): contest
            for (m, task, a), own in levels.items()
            if (m, a) == (mode, arch)
            for images, (contest, _) in own.items()
        }
        name = f"few images {group.key.family.name}"
        for (*cell, images), contest in with_verdicts(contests, results.rules, name).items():
            found[cell[0], cell[1], cell[2]][images] = contest
    return found


def _levels(results: Results, group: Group) -> dict[Cell, dict[float, Level]]:
    """Map each cell to its contests by the number of images per class, without new verdicts.

    The result is empty if the group is not the one with the largest training set of its family.
    """
    family = [other for other in results.groups if other.key.family == group.key.family]
    family.sort(key=lambda other: other.key.training_set)
    if family[-1] is not group:
        return {}
    found: dict[Cell, dict[float, Level]] = {}
    for other in family:
        for cell, contest in results.by_architecture[other.suffix].items():
            images = images_per_class(contest.standard)
            if images and images == images_per_class(contest.robust):
                found.setdefault(cell, {})[images] = (contest, other)
    return {cell: dict(sorted(own.items())) for cell, own in found.items() if len(own) > 1}


def needed_images(curve: Mapping[float, float], accuracy: float) -> float | None:
    """Return the number of images per class at which a curve first reaches an accuracy.

    The accuracy is interpolated linearly in the logarithm of the number of images.

    Args:
        curve: mapping from the number of images per class, ascending, to the accuracy.
        accuracy: accuracy to reach.

    Returns:
        The number of images; None if the curve does not reach the accuracy within its range, or
        begins above it.
    """
    for (x0, y0), (x1, y1) in pairwise(curve.items()):
        if y0 >= accuracy:
            return x0 if y0 == accuracy else None
        if y1 >= accuracy:
            share = (accuracy - y0) / (y1 - y0)
            return math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0)))
    return None


def standard_needs(own: Mapping[float, Contest]) -> dict[float, float | None]:
    """Map each number of images to the number that the standard network needs to be as accurate."""
    curve = {images: contest.standard.mean for images, contest in own.items()}
    return {images: needed_images(curve, contest.robust.mean) for images, contest in own.items()}


def few_images(results: Results, group: Group) -> list[Section]:
    """Build the table and the curves of accuracy against the number of images per class."""
    curves, levels = learning_curves(results, group), _levels(results, group)
    if not curves:
        return []
    rows: list[Row] = []
    runs: list[Merged] = []
    for (mode, task, arch), own in curves.items():
        needs = standard_needs(own)
        for images, contest in own.items():
            every = [*levels[mode, task, arch][images][1].row(mode, task, arch).values()]
            runs += every
            rows.append(
                {
                    "mode": mode,
                    "task": task,
                    "architecture": arch,
                    "images_per_class": images,
                    "standard": value(contest.standard),
                    "robust": value(contest.robust),
                    "best_eps": show_eps(group.key.norm, contest.robust.first.eps),
                    "cross_fitted": interval(
                        contest.verdict, tuple(index for run in every for index in run.indices)
                    ),
                    **verdict_cells(contest.verdict),
                    "standard_needs": _rounded(needs[images]),
                }
            )
    text = [
        "Accuracy in percent for different numbers of training images per class. The number is a "
        "mean if the classes have different sizes. Each trial draws its own images. Each accuracy "
        "is the mean over trials, with the lowest and the highest trial. The best eps is chosen "
        "for each number of images. p-values are corrected for all tasks and numbers of images.",
        "The last column is the number of images per class with which the standard network is as "
        "accurate as the robust one in this row. It is interpolated on the standard curve, "
        "linearly in the logarithm of the number of images. It is missing outside the measured "
        "range.",
        verdict_words.how(results.rules),
        *verdict_words.about(contest for own in curves.values() for contest in own.values()),
    ]
    return [
        section(
            group,
            "few-images",
            "Few training images",
            runs=runs,
            text=text,
            columns=COLUMNS,
            rows=rows,
            figures=[
                _figure(group, mode, curves) for mode in dict.fromkeys(mode for mode, *_ in curves)
            ],
            found=len(rows),
            wanted=len(curves) * len({images for own in curves.values() for images in own}),
        )
    ]


def _rounded(number: float | None) -> float | None:
    """Round to two significant digits, because the interpolation is not more precise."""
    return None if number is None else float(f"{number:.2g}")


def _figure(group: Group, mode: str, curves: Mapping[Cell, Mapping[float, Contest]]) -> Figure:
    """Return the curves of one mode, one panel for each task and architecture."""
    cells = {(task, arch): own for (m, task, arch), own in curves.items() if m == mode}
    several = len({arch for _, arch in cells}) > 1
    panels = {
        f"{task}, {arch}" if several else task: [
            series(side, [*own], [value(getattr(contest, side)) for contest in own.values()])
            for side in ("standard", "robust")
        ]
        for (task, arch), own in cells.items()
    }
    title, axes = f"Few training images, {mode}", ("training images per class", "accuracy, %")
    name = f"few-images-{mode}{group.suffix}"
    return Figure(name, "curves", title, *axes, panels, log_x=True)
