"""Tables as Markdown, CSV and LaTeX: numbers, intervals, escapes, the best in bold."""

import csv
import io

import pytest

from classification.report import tables
from classification.report.sections import Column, Ends, Interval, Kind, Section, Value

MINUS = "\N{MINUS SIGN}"
COLUMNS = [
    Column("task_1", "task_1"),
    Column("robust", kind=Kind.ACCURACY, compared=True),
    Column("standard", kind=Kind.ACCURACY, compared=True),
    Column("difference", "difference, points", Kind.DIFFERENCE),
    Column("paper", kind=Kind.ACCURACY, paper=True),
    Column("recipes", optional=True),
]
INTERVAL = Interval(79.0, 81.0, 0.95, "trials")
ROWS = [
    {
        "task_1": "a|b",
        "robust": Value(91.004, Ends(90.5, 91.5), 3, (0, 1)),
        "standard": Value(90.0),
        "difference": 1.0,
    },
    {
        "task_1": "50 %",
        "robust": Value(80.0, INTERVAL, 2),
        "standard": 80.001,
        "difference": -0.001,
    },
    {"task_1": "c & d", "standard": 70.126, "difference": -12.5, "recipes": ""},
]
SECTION = Section("t", "Best_of 100 %", ["What *it* is."], COLUMNS, ROWS, warnings=["Do not."])


def test_markdown():
    lines = tables.markdown(SECTION).splitlines()
    assert lines[0] == "## Best\\_of 100 %" and "What \\*it\\* is." in lines
    assert "> **Warning:** Do not." in lines
    assert lines[-5:] == [
        "| task\\_1 | robust | standard | difference, points |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | **91.0 (90.5 to 91.5)** | 90.00 | +1.00 |",
        "| 50 % | **80.0 [79, 81]** | **80.00** | 0.00 |",
        f"| c & d |  | 70.13 | {MINUS}12.50 |",
    ]


def test_latex():
    text = tables.latex(SECTION)
    assert r"\caption{Best\_of 100 \%}" in text and r"\begin{tabular}{lrrr}" in text
    assert r"a\textbar{}b & \textbf{91.0 (90.5 to 91.5)} & 90.00 & +1.00 \\" in text
    assert r"c \& d & -- & 70.13 & $-$12.50 \\" in text
    assert text.startswith("% What *it* is.\n% Warning: Do not.\n")
    assert text.count("{") == text.count("}")


def test_latex_escapes_everything():
    section = Section("t", "\\ & % $ # _ { } ~ ^ ² ± ε", [], [Column("a")], [{"a": "x"}])
    caption = next(line for line in tables.latex(section).splitlines() if "caption" in line)
    assert caption == (
        r"\caption{\textbackslash{} \& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{} "
        r"$^2$ $\pm$ $\varepsilon$}"
    )


def test_csv_is_for_programs():
    rows = list(csv.DictReader(io.StringIO(tables.comma(SECTION))))
    assert rows[0]["task_1"] == "a|b" and float(rows[0]["robust"]) == 91.004
    assert (rows[0]["robust_low"], rows[0]["robust_trials"]) == ("90.5", "3")
    assert rows[1]["robust_spread"] == "95 % interval over trials"
    assert rows[1]["standard_low"] == "" and rows[1]["standard"] == "80.001"
    assert rows[2]["robust"] == "" and float(rows[2]["difference"]) == -12.5


def test_columns_without_cells():
    """Columns of the paper and optional columns are dropped; other columns stay."""
    keys = [column.key for column in SECTION.columns]
    assert keys == ["task_1", "robust", "standard", "difference"]
    assert all([*row] == keys for row in SECTION.rows)
    with pytest.raises(AssertionError):
        Section("t", "title", [], [Column("a")], [{"b": 1}])


@pytest.mark.parametrize("form", tables.FORMS.values())
def test_without_rows(form):
    assert form(Section("t", "title", [], [Column("a")], []))
