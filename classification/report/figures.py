"""Figures of a report as SVG and PNG: bars, curves over eps, scatters with a fitted line.

The same figure gives the same bytes. SVG texts stay texts; lines and texts have the colour of
what surrounds them (`currentColor`), so that they can be read on light and on dark.
"""

import io
import re
import textwrap
import warnings
from itertools import cycle
from typing import Any

from classification.report import figure_kinds
from classification.report.figure_kinds import named, plain
from classification.report.sections import Figure, Series

# Colours of Okabe and Ito (2008) that can be told from white and from black alike; marks differ
# too, so that a colour is never the only difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "osD^vP"
INK = "#3b3f45"  # of texts and axes, in the PNG and where an SVG stands alone on light
INK_ON_DARK = "#c9ced6"

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "hatch.linewidth": 0.8,
}
_DIGITS = re.compile(r"(\d\.\d\d)\d+")
_STYLE = (
    f"<style>:root{{color:{INK}}}@media(prefers-color-scheme:dark)"
    f"{{:root{{color:{INK_ON_DARK}}}}}</style>"
)


def draw(figure: Figure, across: str = "") -> tuple[str, bytes]:
    """The figure as `(SVG, PNG)`; the PNG has a white ground, the SVG none.

    Args:
        across: a word to write large over it, such as "simulated".

    Raises:
        ValueError: its kind is unknown, or a series' lists are not equally long.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    _check(figure)
    with matplotlib.rc_context(_RC | {"svg.hashsalt": figure.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the PNG shows a box in its place
        canvas = _canvas(figure)
        canvas.text(
            0.5,
            0.5,
            plain(across),
            fontsize=44,
            weight="bold",
            alpha=0.16,
            rotation=20,
            ha="center",
            va="center",
        )
        canvas.get_layout_engine().execute(canvas)
        canvas.set_layout_engine("none")  # once is enough: it takes half of the time
        # Not through savefig, which draws each figure once more to lay it out.
        svg, png = io.StringIO(), io.BytesIO()
        canvas.set_facecolor("none")
        FigureCanvasSVG(canvas).print_svg(svg, metadata={"Date": None})
        canvas.set(facecolor="white", dpi=160)
        FigureCanvasAgg(canvas).print_png(png, metadata={"Software": None})
    return _adapt(svg.getvalue()), png.getvalue()


def inline(svg: str, label: str) -> str:
    """The `<svg>` element alone, to stand within a page, whose colour it takes.

    Args:
        label: what it shows, for those who cannot see it.
    """
    from markupsafe import escape

    svg = svg[svg.index("<svg") :].replace(_STYLE, "").replace(f' color="{INK}"', "", 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # a page has many figures, an id one place
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(plain(label, 300))}"', 1)


def _check(figure: Figure) -> None:
    if figure.kind not in figure_kinds.KINDS:
        allowed = ", ".join(figure_kinds.KINDS)
        raise ValueError(f"figure {figure.name} is of kind '{figure.kind}'; one of: {allowed}")
    for heading, panel in figure.panels.items():
        for series in panel:
            sizes = {len(series.x), len(series.y)}
            sizes |= {len(s) for s in (series.low, series.high, series.labels) if s}
            if len(sizes) > 1:
                raise ValueError(
                    f"figure {figure.name}, panel '{heading}', series "
                    f"'{series.label}': lists of different lengths"
                )


def looks(panels: dict[str, list[Series]]) -> dict[tuple[str, bool], dict]:
    """`(label, published)` -> colour and mark, the same in all panels.

    The paper's numbers have the colour of ours that are called the same, or, with more words
    behind it, begin the same.
    """
    new, found = zip(cycle(COLOURS), cycle(MARKS), strict=False), {}
    drawn = [series for panel in panels.values() for series in panel]
    for series in sorted(drawn, key=lambda series: series.published):
        key = series.label, series.published
        same = [
            look
            for (label, _), look in found.items()
            if series.published and not look["published"] and series.label.startswith(label)
        ]
        if key not in found:
            colour, mark = (same[-1]["colour"], same[-1]["mark"]) if same else next(new)
            found[key] = {"colour": colour, "mark": mark, "published": series.published}
    return found


def _canvas(figure: Figure) -> Any:
    from matplotlib.figure import Figure as Canvas

    count = max(1, len(figure.panels))
    most = figure_kinds.IN_A_ROW[figure.kind]
    columns = count if count <= 2 else 2 if count == 4 else min(most, 3 if count <= 9 else most)
    lines = -(-count // columns)
    width = figure_kinds.width(figure.kind, [*figure.panels.values()])
    height = figure_kinds.HEIGHTS[figure.kind][count > 1]
    canvas: Any = Canvas(figsize=(width * columns, height * lines + 0.5), layout="constrained")
    axes = canvas.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    styles, shown = looks(figure.panels), {}
    for (heading, panel), axis in zip(figure.panels.items(), axes.flat, strict=False):
        letters = int(10 * width)  # in a line
        title = textwrap.fill(plain(heading, 2 * letters - 2), letters)
        axis.set_title(title, loc="left", weight="bold")
        axis.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
        axis.set_axisbelow(True)
        figure_kinds.KINDS[figure.kind](axis, panel, styles, figure.log_x)
        for series, handle in zip(panel, axis.handles, strict=True):
            shown.setdefault(named(series), handle)
    canvas.supxlabel(plain(figure.x_label, 90), fontsize=9)
    canvas.supylabel(plain(figure.y_label, 60), fontsize=9)
    if shown:
        ncols = min(len(shown), max(2, int(width * columns / 1.9)))
        canvas.legend(
            handles=list(shown.values()),
            labels=list(shown),
            loc="outside upper left",
            ncols=ncols,
            frameon=False,
        )
    return canvas


def _adapt(svg: str) -> str:
    """Let lines and texts take the colour around them; alone, that of the reader's scheme."""
    svg = svg.replace(INK, "currentColor")
    # A hundredth of a point is enough; it halves the file.
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda m: _DIGITS.sub(r"\1", m[0]), svg)
    return re.sub(r"(<svg [^>]*)>", rf'\1 color="{INK}">{_STYLE}', svg, count=1)
