"""Save the optimized images, and draw the figure that compares networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from classification.interpret.plan import OptimizedImages, Plan
from robust_backbones.core.figures import literal, new_figure, save_figure
from robust_backbones.core.files import atomic

CELL = 1.5  # height and width of an image in the figure, inches
MAX_COLUMNS = 10  # columns of the figure per mode; image files and result.json include all images


@dataclass(frozen=True)
class GridRow:
    """One row of the figure.

    Attributes:
        heading: text on the left of the row.
        folder: folder of the row's image files, relative to the run's folder.
        images: image `(3, H, W)` in [0, 1] for each column of the plan, or None if the row has no
            image in this column.
    """

    heading: str
    folder: Path
    images: list[Tensor | None]


def _grid(plan: Plan, optimized: dict[str, OptimizedImages]) -> list[GridRow]:
    """Return the rows that all networks share, then one row per network."""
    rows = [GridRow("start", Path("start"), [*plan.target_starts, *plan.starts])]
    if plan.indices:
        images = [*[None] * len(plan.targets), *plan.images]
        rows.append(GridRow("image", Path("image"), images))
    return rows + [
        GridRow(name, Path("networks", name), [*each.visualized, *each.inverted])
        for name, each in optimized.items()
    ]


def _titles(plan: Plan) -> list[str]:
    """Return a title for each column: `class 3`, `unit 12`, `image 17`."""
    visualized = [f"{kind} {index}" for kind, index in plan.targets]
    return visualized + [f"image {index}" for index in plan.indices]


def save_images(folder: Path, plan: Plan, optimized: dict[str, OptimizedImages]) -> None:
    """Save each image as a PNG file, such as `networks/robust/class_3.png`.

    Args:
        folder: folder of the run.
        plan: columns of the figure.
        optimized: optimized images of each network by its name.
    """
    files = [title.replace(" ", "_") + ".png" for title in _titles(plan)]
    for row in _grid(plan, optimized):
        for file, image in zip(files, row.images, strict=True):
            if image is not None:
                pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
                with atomic(folder / row.folder / file) as temporary:
                    Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def draw(folder: Path, plan: Plan, optimized: dict[str, OptimizedImages]) -> None:
    """Save figure.png and figure.svg, with the first columns of each mode and a row per network.

    Args:
        folder, plan, optimized: as in `save_images`.
    """
    first, panels = len(plan.targets), {}
    grid = _grid(plan, optimized)
    for heading, columns in {
        "Visualized": range(first),
        "Inverted": range(first, plan.columns),
    }.items():
        rows = [row for row in grid if columns and row.images[columns[0]] is not None]
        if rows:
            panels[heading] = rows, columns[:MAX_COLUMNS]
    heights = [len(rows) for rows, _ in panels.values()]
    width = 0.6 + CELL * max(len(columns) for _, columns in panels.values())
    figure = new_figure(width, 0.6 * len(panels) + CELL * sum(heights))
    parts = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (heading, (rows, columns)) in zip(parts, panels.items(), strict=True):
        part.suptitle(heading)
        _draw_panel(part, rows, columns, _column_heads(plan))
    for extension in ("png", "svg"):
        save_figure(figure, folder / f"figure.{extension}", dpi=150)


def _column_heads(plan: Plan) -> list[str]:
    """Return the title of each column. Inverted images also have the name of their class."""
    names = [""] * len(plan.targets) + [f"\n({plan.class_names[k]})" for k in plan.labels]
    return [title + name for title, name in zip(_titles(plan), names, strict=True)]


def _draw_panel(figure: Any, rows: list[GridRow], columns: range, heads: list[str]) -> None:
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        line[0].set_ylabel(literal(row.heading))
        for cell, column in zip(line, columns, strict=True):
            cell.set(xticks=[], yticks=[], frame_on=False)
            image = row.images[column]
            assert image is not None  # `draw` selects rows that have these columns
            cell.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    for cell, column in zip(axes[0], columns, strict=True):
        cell.set_title(literal(heads[column]), fontsize=9)
