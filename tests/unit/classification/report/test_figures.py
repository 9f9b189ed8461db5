"""Figures of a report: what is in them, that they are safe, alike, and readable on any ground."""

import io
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image
from scipy.stats import linregress

from classification.report import figure_kinds, figures
from classification.report.sections import Figure, Series

EPS = [0, 0.01, 0.1, 1, 3]
HOSTILE = '<script>alert("x")</script> $\\frac$ & \x00\n_'


def figure(kind: str, *series: Series, log_x: bool = False, name: str = "f", **panels) -> Figure:
    return Figure(name, kind, "title", "x of it", "y of it", panels or {"": list(series)}, log_x)


BARS = figure(
    "bars",
    Series("robust", ["cifar10", "pets"], [95.0, 92.0], [94.0, 91.5], [96.0, 92.5]),
    Series("robust", ["cifar10", "pets"], [95.53, None], published=True),
)
CURVES = figure(
    "curves",
    Series(
        "resnet18", EPS, [1.0, 2.0, None, 4.0, 5.0], [0.5, 1, None, 3, 4.0], [1.5, 3, None, 5, 6.0]
    ),
    log_x=True,
)
X, Y = [60.0, 70.0, 80.0, 75.0], [90.0, 92.5, 94.0, 94.5]
LINE = linregress(X, Y)
SCATTER = figure(
    "scatter", Series("eps 3", X, Y, labels=list("ABCD"), fit=(LINE.slope, LINE.intercept))
)
FOREST = figure("forest", Series("better", ["pets"], [3.0], [1.0], [5.0]))
ALL = {"bars": BARS, "curves": CURVES, "scatter": SCATTER, "forest": FOREST}


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(
    "kind, words",
    [
        ("bars", ["cifar10", "pets", "robust", "robust (paper)", "y of it"]),
        ("curves", ["0", "0.01", "0.1", "1", "3", "resnet18", "x of it"]),
        ("forest", ["pets", "better", "x of it"]),
        ("scatter", ["A", "B", "C", "D", "eps 3", f"eps 3: R² {LINE.rvalue**2:.2f}"]),
    ],
)
def test_texts_are_texts(kind, words):
    svg, png = figures.draw(ALL[kind])
    assert set(words) <= set(texts(svg))
    assert Image.open(io.BytesIO(png)).size[0] > 500


def test_a_log_axis_without_powers_of_ten_names_its_largest_value():
    x = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    svg, _ = figures.draw(figure("curves", Series("resnet18", x, [1.0] * 7), log_x=True))
    assert "0.8" in texts(svg)


@pytest.mark.parametrize("kind", ALL)
def test_the_same_figure_gives_the_same_bytes_without_a_date(kind):
    svg, png = figures.draw(ALL[kind])
    assert (svg, png) == figures.draw(ALL[kind])
    assert "dc:date" not in svg and b"Software" not in png


@pytest.mark.parametrize("kind", ALL)
def test_the_ink_is_that_of_the_page(kind):
    svg, _ = figures.draw(ALL[kind])
    inside = figures.inline(svg, "what it shows")
    assert "currentColor" in inside and "prefers-color-scheme" in svg
    assert inside.startswith('<svg role="img" aria-label="what it shows"')
    assert figures.INK not in inside and "<?xml" not in inside and "<style>:root" not in inside
    ElementTree.fromstring(inside)


@pytest.mark.parametrize("kind", ALL)
def test_names_from_results_do_no_harm(kind):
    x = [HOSTILE, "b"] if kind == "bars" else [1.0, 2.0]
    labels = [HOSTILE, ""] if kind == "scatter" else []
    drawn = Figure(
        "h",
        kind,
        HOSTILE,
        HOSTILE,
        HOSTILE,
        {HOSTILE: [Series(HOSTILE, x, [1.0, 2.0], labels=labels)]},
    )
    svg = figures.inline(figures.draw(drawn)[0], HOSTILE)
    assert "<script" not in svg and "\x00" not in svg
    assert any("<script>" in text for text in texts(svg))


def test_a_label_that_begins_with_an_underscore_is_in_the_legend():
    svg, _ = figures.draw(figure("curves", Series("_mine", [1, 2], [1.0, 2.0])))
    assert "\u200b_mine" in texts(svg)


def test_a_word_across():
    assert "simulated" in texts(figures.draw(BARS, "simulated")[0])


def test_published_numbers_have_the_color_of_ours_and_another_form():
    ours, paper, other = (
        Series("robust", [], []),
        Series("robust, WRN", [], [], published=True),
        (Series("standard", [], [])),
    )
    found = figures.styles({"a": [paper, ours], "b": [other, ours]})
    assert found["robust", False].color == found["robust, WRN", True].color
    assert found["standard", False].color != found["robust", False].color
    svg, _ = figures.draw(BARS)
    assert "url(#h" in svg  # hatched


def test_zero_stands_left_of_the_logarithms():
    place = figure_kinds._log_places([0.0, 0.01, 0.1, 1.0])
    assert place(0.0) < place(0.01) - 0.3 and place(1.0) - place(0.1) == pytest.approx(1)


@pytest.mark.parametrize("panels", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("kind", ALL)
def test_any_number_of_panels_and_nothing_to_draw(kind, panels):
    names = [f"task{i}" for i in range(panels)]
    empty = [Series("a", [1.0, 2.0], [None, None], fit=(1.0, 0.0) if kind == "scatter" else None)]
    svg, _ = figures.draw(Figure("f", kind, "", "x", "y", dict.fromkeys(names, empty), True))
    assert set(names) <= set(texts(svg))


def test_a_long_heading_has_two_lines():
    words = "digit scenes, Mask R-CNN, 600 iterations, boxes"
    svg, _ = figures.draw(figure("curves", a=[], b=[], **{words: []}))
    assert " ".join(text for text in texts(svg) if text in words and len(text) > 1) == words


@pytest.mark.parametrize(
    "wrong, words",
    [
        (figure("pie"), "figure f: unknown kind 'pie'. Choose from bars, curves, scatter"),
        (figure("bars", Series("s", ["a"], [1.0, 2.0])), "series 's': the lists differ in length"),
    ],
)
def test_what_cannot_be_drawn(wrong, words):
    with pytest.raises(ValueError, match=words):
        figures.draw(wrong)


@pytest.mark.parametrize("kind, same", [("bars", True), ("curves", False), ("scatter", True)])
def test_panels_share_a_scale(kind, same):
    """Accuracies near 20 % and near 80 % on one scale would hide all differences of a curve."""
    x = ["a", "b"] if kind == "bars" else [1.0, 3.0]
    apart = [20.0, 22.0, 80.0, 81.0] if kind == "curves" else [20.0, 30.0, 25.0, 32.0]
    panels = {"low": [Series("s", x, apart[:2])], "high": [Series("s", x, apart[2:])]}
    with figures.matplotlib.rc_context(figures._RC):
        one, two = figures._canvas(figure(kind, **panels)).axes
    lengths = [high - low for low, high in (one.get_ylim(), two.get_ylim())]
    assert lengths[0] == pytest.approx(lengths[1])
    assert (one.get_ylim() == two.get_ylim()) == same and one.get_xlim() == two.get_xlim()
