"""Cells of the page's tables, and the lines about missing numbers."""

import math

import pytest

from classification.report import page_table
from classification.report.page_table import PageCell
from classification.report.sections import Column, Interval, Kind, Section, StdDev, Value
from tests.support import report_parts


def interval(over: str = "trials") -> Interval:
    return Interval(-0.5, 2.0, 0.95, over)


@pytest.mark.parametrize(
    "cell, kind, expected",
    [
        (None, Kind.ACCURACY, PageCell("–", None, True)),
        (None, Kind.TEXT, PageCell("–", None, False)),
        (math.nan, Kind.ACCURACY, PageCell("–", None, True)),
        ("pets", Kind.TEXT, PageCell("pets", "pets")),
        (95.534, Kind.ACCURACY, PageCell("95.53", 95.534, True)),
        (0.5, Kind.DIFFERENCE, PageCell("+0.50", 0.5, True)),
        (3, Kind.COUNT, PageCell("3", 3, True)),
        (Value(1.0, records=(4, 7)), Kind.ACCURACY, PageCell("1.00", 1.0, True, records="4 7")),
        (
            Value(0.75, interval()),
            Kind.DIFFERENCE,
            PageCell("+0.8", 0.75, True, "[\u22120.5, 2.0]", "95 % interval over trials"),
        ),
        (
            Value(1.0, StdDev(0.25)),
            Kind.ACCURACY,
            PageCell("1.00", 1.0, True, "± 0.25", "standard deviation over runs"),
        ),
    ],
)
def test_cells(cell, kind, expected):
    assert page_table.page_cell(cell, Column("a", kind=kind)) == expected


def test_a_description_that_all_spreads_share_is_in_the_heading():
    a, b, plain = Value(1.0, interval()), Value(1.0, interval("images")), Value(1.0)
    cells = {"all": [a, a, a], "most": [a, b, a], "some": [a, plain, a], "one": [a, None, None]}
    columns = [Column(key, kind=Kind.ACCURACY) for key in cells]
    rows = [{key: own[i] for key, own in cells.items()} for i in range(3)]
    heads, shown = page_table.table(Section("s", "S", [], columns, rows))
    assert [note for _, note in heads] == [a.words, a.words, "", ""]
    assert [[cell.note for cell in row] for row in shown] == [
        ["", "", a.words, a.words],
        ["", b.words, "", ""],
        ["", "", a.words, ""],
    ]


def test_the_best_of_a_row():
    columns = [Column(key, kind=Kind.ACCURACY, compared=key != "c") for key in "abc"]
    section = Section("s", "S", [], columns, [{"a": 1.0, "b": 2.0, "c": 3.0}])
    _, rows = page_table.table(section)
    assert [cell.best for cell in rows[0]] == [False, True, False]


def test_missing_numbers():
    assert page_table.missing(report_parts.section()) == [
        "aircraft: ours, percent, difference, points, runs"
    ]
