"""How each kind of figure is drawn into one panel. Each function puts one legend handle for each
series into `axis.handles`.
"""

import math
from collections.abc import Callable
from typing import Any

from classification.report.sections import Series

# Height of a panel, inches: alone, and among others; and the most of them in a row.
HEIGHTS = {"bars": (3.4, 2.6), "curves": (3.8, 2.3), "scatter": (4.2, 3.0)}
IN_A_ROW = {"bars": 3, "curves": 4, "scatter": 3}
_WIDTHS = {"curves": (6.4, 4.4, 2.9), "scatter": (5.6, 4.6, 3.8)}  # alone, of two, of more

NAMED = 24  # points of a scatter that can be told apart with a name beside each


def width(kind: str, panels: list[list[Series]]) -> float:
    """Of each panel, inches; bars need the more the more they are."""
    if kind != "bars":
        return _WIDTHS[kind][min(2, max(0, len(panels) - 1))]
    most = max((sum(len(series.x) for series in panel) for panel in panels), default=0)
    return min(9.0, max(3.7, 0.12 * most, 0 if len(panels) > 1 else 6.0))


def bars(axis: Any, panel: list[Series], looks: dict, log_x: bool) -> None:
    """Groups of bars with their ends; the paper's are hollow."""
    places = {name: i for i, name in enumerate(dict.fromkeys(x for s in panel for x in s.x))}
    width = 0.8 / max(1, len(panel))
    axis.handles = []
    for number, series in enumerate(panel):
        look = looks[series.label, series.published]
        shift = (number - (len(panel) - 1) / 2) * width
        kept = [i for i, y in enumerate(series.y) if y is not None]
        fill = (
            {"facecolor": "none", "hatch": "////"}
            if look["published"]
            else {"facecolor": look["colour"]}
        )
        drawn = axis.bar(
            [places[series.x[i]] + shift for i in kept],
            [series.y[i] for i in kept],
            width * 0.92,
            yerr=_ends(series, kept),
            edgecolor=look["colour"],
            linewidth=0.8,
            error_kw={"elinewidth": 0.9, "capsize": 1.5, "ecolor": _ink()},
            **fill,
        )
        axis.handles.append(drawn)
    names = [plain(name, 24) for name in places]
    room = axis.figure.get_figwidth() / axis.get_gridspec().ncols / max(1, len(names))  # inches
    slanted = len(names) > 1 and 0.085 * max(map(len, names)) > room
    turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_xticks(range(len(names)), names, **turn)
    axis.tick_params(axis="x", length=0)
    axis.axhline(0, color=_ink(), linewidth=0.7)
    axis.set_xlim(-0.6, len(names) - 0.4)


def curves(axis: Any, panel: list[Series], looks: dict, log_x: bool) -> None:
    """Lines with their ends; the paper's are dashed, with hollow marks."""
    values = sorted({float(x) for series in panel for x in series.x})
    place = _log_places(values) if log_x else float
    axis.handles = []
    for series in panel:
        look = looks[series.label, series.published]
        kept = [i for i, y in enumerate(series.y) if y is not None]
        kept.sort(key=lambda i: float(series.x[i]))
        paper = {"linestyle": "--", "markerfacecolor": "none"} if look["published"] else {}
        axis.handles.append(
            axis.errorbar(
                [place(float(series.x[i])) for i in kept],
                [series.y[i] for i in kept],
                yerr=_ends(series, kept),
                color=look["colour"],
                marker=look["mark"],
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


def scatter(axis: Any, panel: list[Series], looks: dict, log_x: bool) -> None:
    """Points with their names, if they are few, and the fitted line; the paper's are hollow."""
    points = sum(len(series.x) for series in panel)
    axis.handles = []
    for series in panel:
        look = looks[series.label, series.published]
        kept = [i for i, y in enumerate(series.y) if y is not None]
        xs, ys = [float(series.x[i]) for i in kept], [series.y[i] for i in kept]
        face = "none" if look["published"] else look["colour"]
        axis.handles.append(
            axis.scatter(xs, ys, 26, marker=look["mark"], facecolor=face, edgecolor=look["colour"])
        )
        if series.fit and xs:
            slope, intercept = series.fit
            ends = [min(xs), max(xs)]
            axis.plot(
                ends,
                [slope * x + intercept for x in ends],
                color=look["colour"],
                linewidth=1,
                linestyle="--" if look["published"] else "-",
            )
            _say_fit(axis, series)
        for i in kept if series.labels and points <= NAMED else []:
            axis.annotate(
                plain(series.labels[i], 24),
                (float(series.x[i]), series.y[i]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
            )
    axis.margins(0.1)


KINDS = {"bars": bars, "curves": curves, "scatter": scatter}


def explained(series: Series) -> float | None:
    """R²: the share of the variance of `y` that the fitted line explains; None without any."""
    pairs = [(float(x), y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
    assert series.fit is not None
    slope, intercept = series.fit
    mean = math.fsum(y for _, y in pairs) / len(pairs) if pairs else 0.0
    total = math.fsum((y - mean) ** 2 for _, y in pairs)
    left = math.fsum((y - slope * x - intercept) ** 2 for x, y in pairs)
    return 1 - left / total if total else None


def _say_fit(axis: Any, series: Series) -> None:
    """Label and R² in the lower right corner, one above the other."""
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
    """Lengths of the error bars below and above; an end that is missing has none."""
    below, above = [], []
    for i in kept:
        y = series.y[i]
        low = series.low[i] if series.low else None
        high = series.high[i] if series.high else None
        below.append(0.0 if low is None or y is None else max(0.0, y - low))
        above.append(0.0 if high is None or y is None else max(0.0, high - y))
    return [below, above] if any(below + above) else None


def _log_places(values: list[float]) -> Callable[[float], float]:
    """A number's place: its logarithm; 0 stands left of the smallest."""
    positive = [math.log10(value) for value in values if value > 0] or [0.0]
    # A fifth of the axis sets 0 apart, even if there are only two values.
    left = min(positive) - max(0.5, 0.2 * (max(positive) - min(positive)))
    return lambda value: math.log10(value) if value > 0 else left


def _log_axis(axis: Any, values: list[float], place: Callable[[float], float]) -> None:
    """Ticks at the values themselves; numbers at 0 and decades, or at all if they are few."""
    decades = [v for v in values if v > 0 and math.log10(v) == round(math.log10(v))]
    named = values if len(values) <= 6 else [v for v in values if v == 0 or v in decades]
    named = [*named, values[-1]] if place(values[-1]) - place(named[-1]) > 0.5 else named
    axis.set_xticks([place(v) for v in named], [f"{v:g}" for v in named])
    axis.set_xticks([place(v) for v in values], minor=True)
    if values[0] == 0 and len(values) > 1:  # where the axis is broken
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
    """A series' label, which says so if the numbers are the paper's."""
    name = plain(series.label, length)
    return f"{name} (paper)" if series.published and "paper" not in name.lower() else name


def plain(text: object, length: int = 40) -> str:
    """Text that can be drawn: one line without control characters, not longer than `length`."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(text))
    text = text if len(text) <= length else text[: length - 1] + "…"
    return "\u200b" + text if text.startswith("_") else text  # matplotlib hides such labels


def _ink() -> str:
    import matplotlib

    return matplotlib.rcParams["text.color"]
