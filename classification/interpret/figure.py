"""Pictures of representations as files: one each, and the figure that compares networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from classification.interpret.plan import Pictures, Plan
from robust_backbones.core.figures import literal, new_figure, save_figure
from robust_backbones.core.files import atomic

CELL = 1.5  # inches
DRAWN = 10  # columns of the figure for each mode; files and numbers are of all pictures


@dataclass(frozen=True)
class Row:
    """One of the figure.

    Attributes:
        folder: of its files, below that of the run.
        images: `(3, H, W)` in [0, 1] for each column of the plan; None where there is none.
    """

    heading: str
    folder: Path
    images: list[Tensor | None]


def grid(plan: Plan, found: dict[str, Pictures]) -> list[Row]:
    """What all networks have in common, and then a row for each of them.

    Args:
        found: name of a network -> its pictures.
    """
    rows = [Row("start", Path("start"), [*plan.shown_starts, *plan.starts])]
    if plan.indices:
        images = [*[None] * len(plan.shown), *plan.targets]
        rows.append(Row("image", Path("image"), images))
    return rows + [
        Row(name, Path("networks", name), [*each.shown, *each.inverted])
        for name, each in found.items()
    ]


def titles(plan: Plan) -> list[str]:
    """Of each column: `class 3`, `unit 12`, `image 17`."""
    shown = [f"{kind} {number}" for kind, number in plan.shown]
    return shown + [f"image {index}" for index in plan.indices]


def save(folder: Path, plan: Plan, found: dict[str, Pictures]) -> None:
    """Each picture as a PNG file, `class_3.png`, in its row's folder."""
    files = [title.replace(" ", "_") + ".png" for title in titles(plan)]
    for row in grid(plan, found):
        for file, image in zip(files, row.images, strict=True):
            if image is not None:
                pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
                with atomic(folder / row.folder / file) as temporary:
                    Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def draw(folder: Path, plan: Plan, found: dict[str, Pictures]) -> None:
    """figure.png and figure.svg: networks as rows, the first of what they show as columns."""
    first, panels = len(plan.shown), {}
    for heading, columns in {
        "Visualised": range(first),
        "Inverted": range(first, plan.columns),
    }.items():
        rows = [row for row in grid(plan, found) if columns and row.images[columns[0]] is not None]
        if rows:
            panels[heading] = rows, columns[:DRAWN]
    heights = [len(rows) for rows, _ in panels.values()]
    width = 0.6 + CELL * max(len(columns) for _, columns in panels.values())
    figure = new_figure(width, 0.6 * len(panels) + CELL * sum(heights))
    parts = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (heading, (rows, columns)) in zip(parts, panels.items(), strict=True):
        part.suptitle(heading)
        _panel(part, rows, columns, _heads(plan))
    for ending in ("png", "svg"):
        save_figure(figure, folder / f"figure.{ending}", dpi=150)


def _heads(plan: Plan) -> list[str]:
    """`titles`, with the class of what is inverted."""
    below = [""] * len(plan.shown) + [f"\n({plan.class_names[k]})" for k in plan.labels]
    return [title + more for title, more in zip(titles(plan), below, strict=True)]


def _panel(figure: Any, rows: list[Row], columns: range, heads: list[str]) -> None:
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        line[0].set_ylabel(literal(row.heading))
        for cell, column in zip(line, columns, strict=True):
            cell.set(xticks=[], yticks=[], frame_on=False)
            image = row.images[column]
            assert image is not None  # `draw` asks for columns that are there
            cell.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    for cell, column in zip(axes[0], columns, strict=True):
        cell.set_title(literal(heads[column]), fontsize=9)
