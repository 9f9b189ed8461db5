"""What stands in the cells of the page's tables."""

import math

import pytest

from classification.report import page_table
from classification.report.page_table import Cell
from classification.report.sections import Column, Section, Value
from tests.support import report_parts


@pytest.mark.parametrize(
    "value, name, digits, expected",
    [
        (None, "a", 2, Cell("–", None, True)),
        (None, "a", None, Cell("–", None, False)),
        (math.nan, "a", 2, Cell("–", None, True)),
        ("pets", "a", None, Cell("pets", "pets")),
        (95.534, "a", 2, Cell("95.53", 95.534, True)),
        (0.5, "difference", 2, Cell("+0.50", 0.5, True)),
        (0.5, "robust - paper", 2, Cell("+0.50", 0.5, True)),
        (0.5, "critical difference", 2, Cell("0.50", 0.5, True)),
        (-0.5, "Difference, points", 1, Cell("\u22120.5", -0.5, True)),
        (3, "runs", 2, Cell("3", 3, True)),
        (True, "fits", None, Cell("True", "True")),
    ],
)
def test_cells(value, name, digits, expected):
    assert page_table.cell(value, Column(name, digits)) == expected


@pytest.mark.parametrize(
    "value, name, ends",
    [
        (Value(1.0), "a", ""),
        (Value(1.0, 1.0, 1.0), "a", ""),
        (Value(1.0, 0.5, 2.0), "a", "0.5 to 2.0"),
        (Value(1.0, -0.5, 2.0, note="95 % interval"), "difference", "[\u22120.5, +2.0]"),
        (Value(1.0, 0.75, 1.25, note="standard deviation of four runs"), "a", "± 0.2"),
    ],
)
def test_ends(value, name, ends):
    assert page_table.cell(value, Column(name, 1)).ends == ends


def test_a_value_has_its_note_and_its_runs():
    found = page_table.cell(Value(1.0, records=(4, 7), note="note"), Column("a", 1))
    assert found.note == "note" and found.records == "4 7"


def test_a_note_that_all_have_stands_in_the_heading():
    columns = [Column("all"), Column("most"), Column("some"), Column("one")]
    a, b, plain = Value(1.0, note="a"), Value(1.0, note="b"), Value(1.0)
    section = Section("s", "S", [], columns, [[a, a, a, a], [a, b, plain, None], [a, a, a, None]])
    heads, rows = page_table.table(section)
    assert [note for _, note in heads] == ["a", "a", "", ""]
    assert [[cell.note for cell in row] for row in rows] == [
        ["", "", "a", "a"],
        ["", "b", "", ""],
        ["", "", "a", ""],
    ]


def test_the_best_of_a_row():
    columns = [Column("a", 1, "high"), Column("b", 1, "high"), Column("c", 1)]
    _, rows = page_table.table(Section("s", "S", [], columns, [[1.0, 2.0, 3.0]]))
    assert [cell.best for cell in rows[0]] == [False, True, False]


def test_what_is_missing():
    assert page_table.missing(report_parts.section()) == [
        "aircraft: ours, percent, difference, points, runs"
    ]
