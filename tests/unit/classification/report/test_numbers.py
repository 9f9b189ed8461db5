"""Text of numbers: decimals, signs and spreads by the kind of a column, never by its words."""

import math
from dataclasses import replace

import pytest

from classification.report import numbers, page_table, tables
from classification.report.contents.build import build_sections, collect
from classification.report.sections import Column, Ends, Interval, Kind, Section, StdDev, Value
from tests.support.result_grids import grid
from tests.support.result_records import detection

MINUS = "\N{MINUS SIGN}"


def interval(mean: float, low: float, high: float) -> Value:
    return Value(mean, Interval(low, high, 0.96, "trials"))


@pytest.mark.parametrize(
    "cell, kind, text",
    [
        (None, Kind.ACCURACY, ""),
        (None, Kind.TEXT, ""),
        ("x", Kind.TEXT, "x"),
        (True, Kind.TEXT, "True"),
        (math.nan, Kind.ACCURACY, ""),
        (Value(math.inf), Kind.ACCURACY, ""),
        # Without a spread: the decimals of the kind.
        (3, Kind.COUNT, "3"),
        (95.534, Kind.ACCURACY, "95.53"),
        (Value(5.0), Kind.ACCURACY, "5.00"),
        (0.5, Kind.DIFFERENCE, "+0.50"),
        (-0.5, Kind.DIFFERENCE, f"{MINUS}0.50"),
        (0.001, Kind.DIFFERENCE, "0.00"),
        (-0.001, Kind.ACCURACY, "0.00"),
        (1.25, Kind.RANK, "1.25"),
        (99.6, Kind.SHARE, "100"),
        (0.12345, Kind.MEASURE, "0.123"),
        (0.976, Kind.R_SQUARED, "0.98"),
        # p-values and slopes: two significant digits.
        (0.4321, Kind.P_VALUE, "0.43"),
        (0.0453, Kind.P_VALUE, "0.045"),
        (0.00012, Kind.P_VALUE, "0.0001"),
        (0.00001, Kind.P_VALUE, "<0.0001"),
        (1.0, Kind.P_VALUE, "1.0"),
        (-0.1197, Kind.SLOPE, f"{MINUS}0.12"),
        # With a spread: two significant digits of its half-width below 3.55, one from there.
        (interval(2.46, -0.01, 4.96), Kind.DIFFERENCE, "+2.5 [0, 5]"),
        (interval(2.46, -0.01, 4.96), Kind.ACCURACY, "2.5 [0, 5]"),
        (interval(2.63, 0.69, 4.57), Kind.DIFFERENCE, "+2.6 [0.7, 4.6]"),
        (interval(-12.5, -32.4, 7.4), Kind.DIFFERENCE, f"{MINUS}12 [{MINUS}32, 7]"),
        (interval(0.5, 0.123, 0.877), Kind.DIFFERENCE, "+0.5 [0.1, 0.9]"),
        (interval(0.5, 0.146, 0.854), Kind.DIFFERENCE, "+0.50 [0.15, 0.85]"),
        (interval(2.231, 1.57, 2.80), Kind.DIFFERENCE, "+2.2 [1.6, 2.8]"),
        (interval(2.231, 1.28, 3.19), Kind.DIFFERENCE, "+2.2 [1.3, 3.2]"),
        (interval(80.4, 75.2, 85.6), Kind.ACCURACY, "80 [75, 86]"),
        (interval(2.38, 0.02, 4.74), Kind.DIFFERENCE, "+2.38 [0.02, 4.74]"),  # the sign counts
        (interval(0.05, 0.0123, 0.0877), Kind.DIFFERENCE, "+0.05 [0.01, 0.09]"),
        (interval(0.0, 0.0, 0.0), Kind.DIFFERENCE, "0.00 [0, 0]"),
        (interval(1.0, -math.inf, math.inf), Kind.DIFFERENCE, f"+1.00 [{MINUS}inf, inf]"),
        (Value(91.17, Ends(90.0, 92.5), 3), Kind.ACCURACY, "91.2 (90.0 to 92.5)"),
        (Value(91.17, Ends(91.17, 91.17), 3), Kind.ACCURACY, "91.17"),
        (Value(40.0, StdDev(0.1), 4), Kind.ACCURACY, "40.00 ± 0.10"),
        (Value(40.04, StdDev(1.26), 4), Kind.ACCURACY, "40.0 ± 1.3"),
    ],
)
def test_text(cell, kind, text):
    assert numbers.text(cell, kind) == text


def test_every_numeric_kind_has_a_format():
    assert set(numbers.FORMATS) == {kind for kind in Kind if kind.numeric}


def columns(kind: Kind) -> list[Column]:
    compared = [Column(key, kind=kind, compared=True) for key in "abc"]
    return [*compared, Column("d", kind=kind)]


@pytest.mark.parametrize(
    "kind, cells, best",
    [
        (Kind.ACCURACY, [1.0, 2.0, 1.5, 9.0], {"b"}),
        (Kind.RANK, [1.0, 2.0, 1.5, 0.5], {"a"}),
        (Kind.ACCURACY, [90.004, Value(90.0), None, None], {"a", "b"}),
        (Kind.ACCURACY, [90.04, Value(90.0, Ends(88.0, 92.0)), 89.0, None], {"a", "b"}),
        (Kind.ACCURACY, [1.0, None, math.nan, 9.0], set()),
    ],
)
def test_the_best_of_a_row(kind, cells, best):
    assert numbers.best(columns(kind), dict(zip("abcd", cells, strict=True))) == best


def reworded(section: Section, heading: str) -> Section:
    """The same section with other headings."""
    return replace(section, columns=[replace(c, heading=heading) for c in section.columns])


@pytest.mark.parametrize("heading", ["paper: critical difference", "gain - interval", "x"])
def test_the_words_of_a_heading_change_no_number(heading):
    found = [*grid(), *(detection(eps=eps, seed=s) for eps in (0.0, 3.0) for s in range(3))]
    for section in build_sections(collect(found)):
        other = reworded(section, heading)
        assert [c.key for c in other.columns] == [c.key for c in section.columns]
        assert page_table.table(other)[1] == page_table.table(section)[1]
        assert tables.comma(other) == tables.comma(section)
        for form, head in ((tables.markdown, "| "), (tables.latex, r"\toprule")):
            before, after = form(section).splitlines(), form(other).splitlines()
            differ = [
                i for i, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1
            ]
            first = next((i for i, line in enumerate(before) if line.startswith(head)), None)
            assert differ in ([], [first], [first and first + 1]), differ
