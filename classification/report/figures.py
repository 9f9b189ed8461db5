"""Draw the figures of a report as SVG and PNG.

Equal figures give equal bytes. Text in an SVG file remains text. Lines and text use `currentColor`,
so they are readable on light and dark pages.
"""

import io
import re
import textwrap
import warnings
from itertools import cycle
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from classification.report import figure_kinds
from classification.report.figure_kinds import Style, named, plain
from classification.report.sections import Figure, Series
from robust_backbones.core.figures import new_figure

# Colors of Okabe and Ito (2008) that are readable on white and on black. Markers differ as well, so
# color is never the only difference.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
INK = "#3b3f45"  # color of text and axes in PNG files, and in SVG files on light backgrounds
INK_ON_DARK = "#c9ced6"  # color of text and axes in SVG files on dark backgrounds

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain dollar signs
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


def draw(figure: Figure, watermark: str = "") -> tuple[str, bytes]:
    """Draw a figure.

    Args:
        figure: the figure.
        watermark: word to write across the figure, such as "simulated"; empty: no watermark.

    Returns:
        SVG text without a background, and the bytes of a PNG file with a white background.

    Raises:
        ValueError: the kind is unknown, or the lists of a series differ in length.
    """
    _check(figure)
    with matplotlib.rc_context(_RC | {"svg.hashsalt": figure.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # missing glyphs become boxes
        canvas = _canvas(figure)
        canvas.text(
            0.5,
            0.5,
            plain(watermark),
            fontsize=44,
            weight="bold",
            alpha=0.16,
            rotation=20,
            ha="center",
            va="center",
        )
        canvas.get_layout_engine().execute(canvas)
        canvas.set_layout_engine("none")  # compute the slow layout only once
        # Avoid savefig, which would draw each figure again to compute the layout.
        svg, png = io.StringIO(), io.BytesIO()
        canvas.set_facecolor("none")
        FigureCanvasSVG(canvas).print_svg(svg, metadata={"Date": None})
        canvas.set(facecolor="white", dpi=160)
        FigureCanvasAgg(canvas).print_png(png, metadata={"Software": None})
    return _adapt(svg.getvalue()), png.getvalue()


def inline(svg: str, label: str) -> str:
    """Return the `<svg>` element for use in a page. The element uses the text color of the page.

    Args:
        svg: SVG text from `draw`.
        label: description of the figure for screen readers.
    """
    svg = svg[svg.index("<svg") :].replace(_STYLE, "").replace(f' color="{INK}"', "", 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # ids must be unique in a page
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(plain(label, 300))}"', 1)


def _check(figure: Figure) -> None:
    if figure.kind not in figure_kinds.KINDS:
        allowed = ", ".join(figure_kinds.KINDS)
        raise ValueError(
            f"figure {figure.name}: unknown kind '{figure.kind}'. Choose from {allowed}."
        )
    for heading, panel in figure.panels.items():
        for series in panel:
            sizes = {len(series.x), len(series.y)}
            sizes |= {len(s) for s in (series.low, series.high, series.labels) if s}
            if len(sizes) > 1:
                raise ValueError(
                    f"figure {figure.name}, panel '{heading}', series '{series.label}': the lists "
                    "differ in length."
                )


def styles(panels: dict[str, list[Series]]) -> dict[tuple[str, bool], Style]:
    """Map `(label, published)` to a style that is the same in all panels.

    A series of the paper has the color and marker of our series if the paper's label begins with
    our label.
    """
    new, found = zip(cycle(COLORS), cycle(MARKERS), strict=False), {}
    drawn = [series for panel in panels.values() for series in panel]
    for series in sorted(drawn, key=lambda series: series.published):
        key = series.label, series.published
        ours = [
            style
            for (label, _), style in found.items()
            if series.published and not style.published and series.label.startswith(label)
        ]
        if key not in found:
            color, marker = (ours[-1].color, ours[-1].marker) if ours else next(new)
            found[key] = Style(color, marker, series.published)
    return found


def _canvas(figure: Figure) -> Any:
    """Draw the panels in rows, with one legend above them."""
    count = max(1, len(figure.panels))
    most = figure_kinds.IN_A_ROW[figure.kind]
    columns = min(most, count if count <= 2 else 2 if count == 4 else 3 if count <= 9 else most)
    lines = -(-count // columns)
    width = figure_kinds.width(figure.kind, [*figure.panels.values()])
    height = figure_kinds.height(figure.kind, [*figure.panels.values()])
    canvas = new_figure(width * columns, height * lines + 0.5)
    axes = canvas.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    drawn, shown = styles(figure.panels), {}
    for (heading, panel), axis in zip(figure.panels.items(), axes.flat, strict=False):
        # Length of a line, and lines of the title. Names of tasks narrow the axes of forest plots.
        letters, most = (int(6 * width), 3) if figure.kind == "forest" else (int(10 * width), 2)
        title = textwrap.fill(plain(heading, most * letters - 2), letters)
        axis.set_title(title, loc="left", weight="bold")
        axis.grid(
            axis="x" if figure.kind == "forest" else "y", color=INK, alpha=0.15, linewidth=0.6
        )
        axis.set_axisbelow(True)
        figure_kinds.KINDS[figure.kind](axis, panel, drawn, figure.log_x)
        for series, handle in zip(panel, axis.handles, strict=True):
            shown.setdefault(named(series), handle)
        if figure.margin:
            axis.axvspan(-figure.margin, figure.margin, color=INK, alpha=0.12, linewidth=0)
        if figure.x_limits:
            axis.set_xlim(*figure.x_limits)
    figure_kinds.share_scale(figure.kind, [*axes.flat[: len(figure.panels)]])
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
    """Give lines and text the color of the page, or of the reader's color scheme in an SVG file."""
    svg = svg.replace(INK, "currentColor")
    # Coordinates need only two decimals. Cutting the others halves the size of the file.
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda m: _DIGITS.sub(r"\1", m[0]), svg)
    return re.sub(r"(<svg [^>]*)>", rf'\1 color="{INK}">{_STYLE}', svg, count=1)
