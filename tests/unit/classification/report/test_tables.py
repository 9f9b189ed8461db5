"""Tables as Markdown, CSV and LaTeX: numbers, intervals, escapes, the best in bold."""

import csv
import io

import pytest

from classification.report import tables
from classification.report.sections import Column, Section, Value

MINUS = "\N{MINUS SIGN}"
COLUMNS = [
    Column("task_1", None),
    Column("robust", 2, "high"),
    Column("standard", 2, "high"),
    Column("difference"),
]
ROWS = [
    ["a|b", Value(91.004, 90.5, 91.5, 3, (0, 1)), Value(90.0), 1.0],
    ["50 %", Value(80.0, 79, 81, 2, (), "95 % interval over trials"), 80.001, -0.001],
    ["c & d", None, 70.126, -12.5],
]
SECTION = Section("t", "Best_of 100 %", ["What *it* is."], COLUMNS, ROWS, warnings=["Do not."])


@pytest.mark.parametrize(
    "cell, digits, text",
    [
        (None, 2, ""),
        ("x", None, "x"),
        (1, 0, "1"),
        (-0.001, 2, "0.00"),
        (-1.5, 1, MINUS + "1.5"),
        (float("nan"), 2, ""),
        (Value(float("nan")), 2, ""),
        (Value(5.0), 2, "5.00"),
        (Value(5.0, 4.0, 6.5), 1, "5.0 (4.0–6.5)"),
        (Value(0.5, -1, 2, 3, (), "95 % interval over trials"), 1, f"0.5 [{MINUS}1.0, 2.0]"),
        (Value(40, 39.9, 40.1, 4, (), "standard deviation"), 2, "40.00 ± 0.10"),
    ],
)
def test_words(cell, digits, text):
    assert tables.words(cell, digits) == text


def test_markdown():
    lines = tables.markdown(SECTION).splitlines()
    assert lines[0] == "## Best\\_of 100 %" and "What \\*it\\* is." in lines
    assert "> **Warning:** Do not." in lines
    assert lines[-5:] == [
        "| task\\_1 | robust | standard | difference |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | **91.00 (90.50–91.50)** | 90.00 | 1.00 |",
        "| 50 % | **80.00 [79.00, 81.00]** | **80.00** | 0.00 |",
        f"| c & d |  | 70.13 | {MINUS}12.50 |",
    ]


def test_latex():
    text = tables.latex(SECTION)
    assert r"\caption{Best\_of 100 \%}" in text and r"\begin{tabular}{lrrr}" in text
    assert r"a\textbar{}b & \textbf{91.00 (90.50--91.50)} & 90.00 & 1.00 \\" in text
    assert r"c \& d & -- & 70.13 & $-$12.50 \\" in text
    assert text.startswith("% What *it* is.\n% Warning: Do not.\n")
    assert text.count("{") == text.count("}")


def test_latex_escapes_everything():
    section = Section("t", "\\ & % $ # _ { } ~ ^ ² ± ε", [], [Column("a", None)], [["x"]])
    caption = next(line for line in tables.latex(section).splitlines() if "caption" in line)
    assert caption == (
        r"\caption{\textbackslash{} \& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{} "
        r"$^2$ $\pm$ $\varepsilon$}"
    )


def test_csv_is_for_programs():
    rows = list(csv.DictReader(io.StringIO(tables.comma(SECTION))))
    assert rows[0]["task_1"] == "a|b" and float(rows[0]["robust"]) == 91.004
    assert (rows[0]["robust: low"], rows[0]["robust: trials"]) == ("90.5", "3")
    assert rows[1]["robust: note"] == "95 % interval over trials" and rows[1]["standard: low"] == ""
    assert rows[2]["robust"] == "" and float(rows[2]["difference"]) == -12.5


def test_lowest_can_be_best():
    columns = [Column("a", 1, "low"), Column("b", 1, "low"), Column("c", 1)]
    assert tables.cells(columns, [1.0, 2.0, 0.5], tables.MARKDOWN) == ["**1.0**", "2.0", "0.5"]


@pytest.mark.parametrize("form", tables.FORMS.values())
def test_without_rows(form):
    assert form(Section("t", "title", [], [Column("a")], []))
