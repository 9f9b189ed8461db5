"""Read and draw training curves from the `metrics.json` files of Detectron2's trainer."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.figures import literal, new_figure, save_figure

FILE = "metrics.json"
Series = dict[str, dict[int, float]]

# Colors are from Okabe and Ito (2008). Line styles help readers who cannot distinguish the colors.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")


def read(path: str | Path) -> Series:
    """Read the metrics of one run.

    Interrupted runs leave duplicate and truncated records. If a resumed run goes back to an earlier
    iteration, the earlier metrics from this iteration on are discarded. The last of several records
    for the same iteration is used. Truncated records are skipped. A complete record that follows a
    truncated record on the same line is used.

    Args:
        path: run folder, or its `metrics.json`.

    Returns:
        Metrics `{name: {iteration: value}}`. Values that are not finite are excluded.

    Raises:
        UserError: the file does not exist, or contains no iteration.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror}). Give the folder of a run, with {FILE}."
        ) from None
    series: Series = {}
    last = -1
    for row in filter(None, map(_parse, text.splitlines())):
        now = row.pop("iteration")
        if now < last:
            series = {k: {i: v for i, v in s.items() if i < now} for k, s in series.items()}
        last = now
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                series.setdefault(name, {})[now] = value
    if last < 0:
        raise UserError(f"'{path}' contains no training iterations. Give the folder of a run.")
    return {name: values for name, values in series.items() if values}


def _parse(line: str) -> dict | None:
    """Parse the record of a line. Return None if the line is damaged."""
    for part in (line, line[line.rfind("{") :]):
        try:
            row = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            return row
    return None


def panels(runs: dict[str, Series]) -> list[str]:
    """Return the names of the metrics to draw: total loss, other losses, learning rate, APs."""
    names = {name for series in runs.values() for name in series}
    losses = sorted((n for n in names if "loss" in n), key=lambda n: (n != "total_loss", n))
    aps = sorted(name for name in names if name.split("/")[-1] == "AP")
    return [*losses, *(["lr"] if "lr" in names else []), *aps]


def labels(paths: Sequence[str | Path]) -> list[str]:
    """Return a short name for each path: the fewest last parts that make all names unique.

    Raises:
        UserError: a path occurs twice.
    """
    parts = [(p.parent if p.name == FILE else p).parts for p in (Path(p).resolve() for p in paths)]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    if parts:
        raise UserError(f"{paths[-1]} is given twice. Give each run once.")
    return []


def draw(runs: dict[str, Series], path: str | Path) -> list[str]:
    """Draw the curves of all runs, with one panel for each metric against the iteration.

    Args:
        runs: metrics of each run, `{label: output of read}`.
        path: PNG file to write.

    Returns:
        The names of the panels.

    Raises:
        UserError: the runs contain no metric that `panels` lists.
    """
    shown = panels(runs)
    if not shown:
        raise UserError("The runs contain no loss, learning rate or AP.")
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(4.5 * columns, 3 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for name, axis in zip(shown, axes.flat, strict=False):
        for i, (label, series) in enumerate(runs.items()):
            points = sorted(series.get(name, {}).items())
            marker = "o" if len(points) < 20 else None
            look = {"color": _COLORS[i % len(_COLORS)], "linestyle": _STYLES[i % len(_STYLES)]}
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axis.plot(xs, ys, label=literal(label), marker=marker, markersize=3, **look)
        unit = ", percent" if name.endswith("AP") else ""
        axis.set(title=literal(name) + unit, xlabel="iteration")
        axis.xaxis.set_tick_params(labelbottom=True)
        if min((min(s[name].values()) for s in runs.values() if name in s), default=0) >= 0:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save_figure(figure, path)
    return shown
