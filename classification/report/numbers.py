"""Format the cells of a table. `FORMATS` has the format of each kind of column."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from classification.report.sections import Cell, Column, Ends, Interval, Kind, Row, StdDev, Value

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Format:
    """Format of the numbers in one kind of column.

    Attributes:
        decimals: maximum number of decimals.
        signed: whether positive numbers have a plus sign.
        two_digits: whether numbers without a spread are rounded to two significant digits.
        smallest: limit below which a number is written as `<smallest`; 0: no limit.
        best: function that returns the best of several numbers, `max` or `min`.
    """

    decimals: int
    signed: bool = False
    two_digits: bool = False
    smallest: float = 0.0
    best: Callable = max


FORMATS = {
    Kind.COUNT: Format(0),
    Kind.ACCURACY: Format(2),
    Kind.DIFFERENCE: Format(2, signed=True),
    Kind.P_VALUE: Format(4, two_digits=True, smallest=1e-4),
    Kind.SLOPE: Format(4, two_digits=True),
    Kind.R_SQUARED: Format(2),
    Kind.RANK: Format(2, best=min),
    Kind.SHARE: Format(0),
    Kind.MEASURE: Format(3),
}


def text(cell: Cell, kind: Kind) -> str:
    """Return the number and the spread of a cell as text. A missing cell has an empty text.

    Examples are `91.2 (90.5 to 92.1)`, `+2.5 [0, 5]` and `40.00 ± 0.10`.
    """
    return " ".join(part for part in parts(cell, kind) if part)


def parts(cell: Cell, kind: Kind) -> tuple[str, str]:
    """Return the text of a cell's number and the text of its spread.

    Both have as many decimals as the spread supports; see `decimals`. For example,
    2.46 [-0.01, 4.96] becomes 2.5 [0, 5].
    """
    if not kind.numeric:
        return "" if cell is None else str(cell), ""
    number, spread = number_of(cell), cell.spread if isinstance(cell, Value) else None
    if number is None:
        return "", ""
    form, places = FORMATS[kind], decimals(cell, kind)
    if form.smallest and number < form.smallest:
        return f"<{form.smallest:.{form.decimals}f}", ""
    shown = _fixed(number, places, form.signed)
    match spread:
        case Interval():
            return shown, "[{}, {}]".format(*_ends(spread, places))
        case StdDev():
            return shown, f"± {_fixed(spread.size, places)}"
        case Ends() if spread.low != spread.high:
            return shown, "({} to {})".format(*_ends(spread, places))
    return shown, ""


def number_of(cell: Cell) -> float | None:
    """Return the number in a cell of a numeric column, or None if it is missing or not finite."""
    number = cell.mean if isinstance(cell, Value) else cell
    assert not isinstance(number, str), number
    return number if number is not None and math.isfinite(number) else None


def decimals(cell: Cell, kind: Kind) -> int:
    """Return the number of decimals for a cell's number and spread.

    A spread limits the decimals to the significant digits of its half-width, by the rule of the
    Particle Data Group. A half-width has two significant digits if it begins with 100 to 354, and
    one digit otherwise. An interval that excludes 0 has more decimals if one of its ends would
    round to 0, because the verdict depends on the sign of the ends.
    """
    form = FORMATS[kind]
    if isinstance(cell, Value) and cell.spread:
        low, high = cell.spread.around(cell.mean)
        size, two_digits_below = (high - low) / 2, 3.55
    elif form.two_digits:
        size, two_digits_below = abs(number_of(cell) or 0.0), 10.0
    else:
        return form.decimals
    if not 0 < size < math.inf:
        return form.decimals
    exponent = math.floor(math.log10(size))
    digits = 2 if size < two_digits_below * 10.0**exponent else 1
    places = min(form.decimals, max(0, digits - 1 - exponent))
    if isinstance(cell, Value) and isinstance(cell.spread, Interval) and low * high > 0:
        while places < form.decimals and 0 in (round(low, places), round(high, places)):
            places += 1
    return places


def _ends(spread: Ends | Interval, places: int) -> list[str]:
    """Format both ends with equal decimals, or without decimals if both are whole numbers."""
    ends = [round(end, places) for end in (spread.low, spread.high)]
    whole = all(end == round(end) for end in ends if math.isfinite(end))
    return [_fixed(end, 0 if whole else places) for end in ends]


def _fixed(number: float, places: int, signed: bool = False) -> str:
    """Format a number with a typographic minus sign. A number that rounds to zero has no sign."""
    written = f"{number:+.{places}f}" if signed else f"{number:.{places}f}"
    if float(written) == 0:
        written = written.lstrip("+-")
    return written.replace("-", MINUS)


def best(columns: Sequence[Column], row: Row) -> set[str]:
    """Return the keys of the columns that contain the best number of a row.

    Only compared columns of the same kind compete, and only if at least two of them have a number.
    Numbers that are equal after rounding are all best.
    """
    found: set[str] = set()
    compared = [c for c in columns if c.compared and number_of(row[c.key]) is not None]
    for kind in {column.kind for column in compared}:
        cells = {column.key: row[column.key] for column in compared if column.kind is kind}
        if len(cells) < 2:
            continue
        places = min(decimals(cell, kind) for cell in cells.values())
        numbers = {key: round(number_of(cell) or 0.0, places) for key, cell in cells.items()}
        top = FORMATS[kind].best(numbers.values())
        found |= {key for key, number in numbers.items() if number == top}
    return found
