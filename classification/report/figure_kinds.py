"""Functions that draw a panel, one function for each kind of figure.

Each drawing function sets `axis.handles` to one legend handle for each series.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib

from classification.report.sections import Series

# Panel heights in inches: of a single panel, and of each of several panels.
_HEIGHTS = {"bars": (3.4, 2.6), "curves": (3.8, 2.3), "scatter": (4.2, 3.0)}
_LINE = 0.3  # height of a line of a forest plot in inches
ROOM = 1.5  # longest common y axis in `share_scale`, as a multiple of the longest y axis
IN_A_ROW = {"bars": 3, "curves": 4, "scatter": 3, "forest": 1}  # maximum number of panels in a row
# Panel widths in inches for one, two, and three or more panels.
_WIDTHS = {"curves": (6.4, 4.4, 2.9), "scatter": (5.6, 4.6, 3.8)}

NAMED = 24  # points have no names in scatter plots with more points: the names would overlap


@dataclass(frozen=True)
class Style:
    """Style of a series.

    Attributes:
        color: hexadecimal color.
        marker: matplotlib marker.
        published: whether the series has the paper's numbers, which are drawn hollow, dashed or
            hatched.
    """

    color: str
    marker: str
    published: bool


Styles = dict[tuple[str, bool], Style]  # (label, published) -> style


def width(kind: str, panels: list[list[Series]]) -> float:
    """Return the width of each panel in inches. Bar plots with more bars are wider."""
    if kind == "forest":
        return 7.0
    if kind != "bars":
        return _WIDTHS[kind][min(2, max(0, len(panels) - 1))]
    most = max((sum(len(series.x) for series in panel) for panel in panels), default=0)
    return min(9.0, max(3.7, 0.12 * most, 0 if len(panels) > 1 else 6.0))


def height(kind: str, panels: list[list[Series]]) -> float:
    """Return the height of each panel in inches. Forest plots with more lines are higher."""
    if kind != "forest":
        return _HEIGHTS[kind][len(panels) > 1]
    return 0.7 + _LINE * max(
        (sum(len(series.x) for series in panel) for panel in panels), default=1
    )


def bars(axis: Any, panel: list[Series], styles: Styles, log_x: bool) -> None:
    """Draw groups of bars with error bars. The paper's bars are hollow."""
    places = {name: i for i, name in enumerate(dict.fromkeys(x for s in panel for x in s.x))}
    width = 0.8 / max(1, len(panel))
    axis.handles = []
    for number, series in enumerate(panel):
        style = styles[series.label, series.published]
        shift = (number - (len(panel) - 1) / 2) * width
        kept = [i for i, y in enumerate(series.y) if y is not None]
        fill = (
            {"facecolor": "none", "hatch": "////"}
            if style.published
            else {"facecolor": style.color}
        )
        drawn = axis.bar(
            [places[series.x[i]] + shift for i in kept],
            [series.y[i] for i in kept],
            width * 0.92,
            yerr=_ends(series, kept),
            edgecolor=style.color,
            linewidth=0.8,
            error_kw={"elinewidth": 0.9, "capsize": 1.5, "ecolor": _ink()},
            **fill,
        )
        axis.handles.append(drawn)
    names = [plain(name, 24) for name in places]
    # Width for each name, inches.
    room = axis.figure.get_figwidth() / axis.get_gridspec().ncols / max(1, len(names))
    slanted = len(names) > 1 and 0.085 * max(map(len, names)) > room
    turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_xticks(range(len(names)), names, **turn)
    axis.tick_params(axis="x", length=0)
    axis.axhline(0, color=_ink(), linewidth=0.7)
    axis.set_xlim(-0.6, len(names) - 0.4)


def curves(axis: Any, panel: list[Series], styles: Styles, log_x: bool) -> None:
    """Draw lines with error bars. The paper's lines are dashed, with hollow markers."""
    values = sorted({float(x) for series in panel for x in series.x})
    place = _log_places(values) if log_x else float
    axis.handles = []
    for series in panel:
        style = styles[series.label, series.published]
        kept = [i for i, y in enumerate(series.y) if y is not None]
        kept.sort(key=lambda i: float(series.x[i]))
        paper = {"linestyle": "--", "markerfacecolor": "none"} if style.published else {}
        axis.handles.append(
            axis.errorbar(
                [place(float(series.x[i])) for i in kept],
                [series.y[i] for i in kept],
                yerr=_ends(series, kept),
                color=style.color,
                marker=style.marker,
                markersize=3.6,
                linewidth=1.3,
                elinewidth=0.9,
                **paper,
            )
        )
    if log_x and values:
        _log_axis(axis, values, place)
    elif len(values) <= 6:
        axis.set_xticks(values, [f"{value:g}" for value in values])


def scatter(axis: Any, panel: list[Series], styles: Styles, log_x: bool) -> None:
    """Draw points and fitted lines. The paper's points are hollow.

    The points have names if there are at most `NAMED` points.
    """
    points = sum(len(series.x) for series in panel)
    axis.handles = []
    for series in panel:
        style = styles[series.label, series.published]
        kept = [i for i, y in enumerate(series.y) if y is not None]
        xs, ys = [float(series.x[i]) for i in kept], [series.y[i] for i in kept]
        face = "none" if style.published else style.color
        axis.handles.append(
            axis.scatter(xs, ys, 26, marker=style.marker, facecolor=face, edgecolor=style.color)
        )
        if series.fit and xs:
            slope, intercept = series.fit
            ends = [min(xs), max(xs)]
            axis.plot(
                ends,
                [slope * x + intercept for x in ends],
                color=style.color,
                linewidth=1,
                linestyle="--" if style.published else "-",
            )
            _write_fit(axis, series)
        for i in kept if series.labels and points <= NAMED else []:
            axis.annotate(
                plain(series.labels[i], 24),
                (float(series.x[i]), series.y[i]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
            )
    axis.margins(0.1)


def forest(axis: Any, panel: list[Series], styles: Styles, log_x: bool) -> None:
    """Draw one estimate with its interval in each line, and a line at 0."""
    places = {name: i for i, name in enumerate(dict.fromkeys(x for s in panel for x in s.x))}
    axis.handles = []
    for series in panel:
        style = styles[series.label, series.published]
        kept = [i for i, y in enumerate(series.y) if y is not None]
        axis.handles.append(
            axis.errorbar(
                [series.y[i] for i in kept],
                [places[series.x[i]] for i in kept],
                xerr=_ends(series, kept),
                color=style.color,
                marker=style.marker,
                linestyle="none",
                markersize=5,
                elinewidth=1.3,
            )
        )
    axis.set_yticks(range(len(places)), [plain(name, 48) for name in places])
    axis.set_ylim(len(places) - 0.4, -0.6)  # the first line is on top
    axis.tick_params(axis="y", length=0)
    axis.axvline(0, color=_ink(), linewidth=0.7)


KINDS = {"bars": bars, "curves": curves, "scatter": scatter, "forest": forest}


def share_scale(kind: str, axes: list[Any]) -> None:
    """Give all panels the same scale, so that they can be compared.

    Numeric x axes get the same limits. The y axes of bar plots also get the same limits. Other y
    axes get the same limits if these are at most `ROOM` times as long as the longest y axis.
    Otherwise, for example if tasks differ in difficulty, all y axes get the same length. One point
    of accuracy then has the same height in all panels.
    """
    drawn = [axis for axis in axes if axis.has_data()]
    if len(drawn) < 2:
        return
    if kind != "bars":
        limits = [axis.get_xlim() for axis in drawn]
        for axis in drawn:
            axis.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    if kind == "forest":
        return
    limits = [axis.get_ylim() for axis in drawn]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    length = max(high - low for low, high in limits)
    for axis, (bottom, top) in zip(drawn, limits, strict=True):
        if kind == "bars" or high - low <= ROOM * length:
            axis.set_ylim(low, high)
        else:
            middle = (bottom + top) / 2
            axis.set_ylim(middle - length / 2, middle + length / 2)


def explained(series: Series) -> float | None:
    """Return R² of the fitted line, or None if `y` does not vary."""
    pairs = [(float(x), y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
    assert series.fit is not None
    slope, intercept = series.fit
    mean = math.fsum(y for _, y in pairs) / len(pairs) if pairs else 0.0
    total = math.fsum((y - mean) ** 2 for _, y in pairs)
    left = math.fsum((y - slope * x - intercept) ** 2 for x, y in pairs)
    return 1 - left / total if total else None


def _write_fit(axis: Any, series: Series) -> None:
    """Write a series' label and R² into the lower right corner, above the previous series."""
    share = explained(series)
    if share is not None:
        line = len(axis.texts) - sum(hasattr(text, "xyann") for text in axis.texts)
        axis.text(
            1,
            0.02 + 0.06 * line,
            f"{named(series, 32)}: R² {share:.2f}",
            ha="right",
            fontsize=8,
            transform=axis.transAxes,
        )


def _ends(series: Series, kept: list[int]) -> list[list[float]] | None:
    """Return the lengths of the error bars below and above the values; None if all are 0.

    Args:
        series: series with the ends of the error bars. A missing end has the length 0.
        kept: indices of the values that are drawn.
    """
    below, above = [], []
    for i in kept:
        y = series.y[i]
        low = series.low[i] if series.low else None
        high = series.high[i] if series.high else None
        below.append(0.0 if low is None or y is None else max(0.0, y - low))
        above.append(0.0 if high is None or y is None else max(0.0, high - y))
    return [below, above] if any(below + above) else None


def _log_places(values: list[float]) -> Callable[[float], float]:
    """Return a function that maps numbers to positions on a logarithmic axis.

    Positive numbers are mapped to their base-10 logarithm. 0 is left of all positive numbers.
    """
    positive = [math.log10(value) for value in values if value > 0] or [0.0]
    # The distance of 0 from the smallest number is at least a fifth of the axis.
    left = min(positive) - max(0.5, 0.2 * (max(positive) - min(positive)))
    return lambda value: math.log10(value) if value > 0 else left


def _log_axis(axis: Any, values: list[float], place: Callable[[float], float]) -> None:
    """Set a tick at each value. Up to six values all have labels.

    With more values, only 0, powers of ten, and a distant largest value have labels.
    """
    decades = [v for v in values if v > 0 and math.log10(v) == round(math.log10(v))]
    named = values if len(values) <= 6 else [v for v in values if v == 0 or v in decades]
    if not named or place(values[-1]) - place(named[-1]) > 0.5:
        named = [*named, values[-1]]
    axis.set_xticks([place(v) for v in named], [f"{v:g}" for v in named])
    axis.set_xticks([place(v) for v in values], minor=True)
    if values[0] == 0 and len(values) > 1:  # mark the break between 0 and the rest of the axis
        middle = (place(0) + place(values[1])) / 2
        axis.plot(
            [middle],
            [0],
            marker=[(-1, -2), (1, 2)],
            markersize=7,
            color=_ink(),
            transform=axis.get_xaxis_transform(),
            clip_on=False,
            linewidth=0,
        )


def named(series: Series, length: int = 40) -> str:
    """Return the label of a series, with "(paper)" if the series has the paper's numbers."""
    name = plain(series.label, length)
    return f"{name} (paper)" if series.published and "paper" not in name.lower() else name


def plain(text: object, length: int = 40) -> str:
    """Replace unprintable characters with spaces, and cut the text to `length` characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(text))
    text = text if len(text) <= length else text[: length - 1] + "…"
    # matplotlib hides labels that begin with an underscore.
    return "\u200b" + text if text.startswith("_") else text


def _ink() -> str:
    """Return the default text color."""
    return matplotlib.rcParams["text.color"]
