"""Format the cells of a table. Decimals, signs and spreads depend on the kind of column only."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from classification.report.sections import Cell, Column, Ends, Interval, Kind, Row, StdDev, Value

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Format:
    """Format of the numbers of one kind, and their order.

    Attributes:
        decimals: largest number of decimals.
        signed: whether positive numbers have a plus sign.
        two_digits: whether numbers are rounded to two significant digits.
        smallest: numbers below it are written as `<smallest`.
        best: chooses the best of several numbers.
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
    """Format a cell with its spread; empty if the cell is missing.

    Examples are `91.2 (90.5 to 92.1)`, `+2.5 [0, 5]` and `40.00 ± 0.10`.
    """
    return " ".join(part for part in parts(cell, kind) if part)


def parts(cell: Cell, kind: Kind) -> tuple[str, str]:
    """Text of the number, rounded to what its spread supports, and text of the spread.

    The number, its spread and the spread's half-width have the same decimals, see `decimals`:
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
    """Number in a cell of a numeric column; None if it is missing or not finite."""
    number = cell.mean if isinstance(cell, Value) else cell
    assert not isinstance(number, str), number
    return number if number is not None and math.isfinite(number) else None


def decimals(cell: Cell, kind: Kind) -> int:
    """Decimals of a number. A spread reduces them to the significant digits of its half-width.

    By the rule of the Particle Data Group, there are two digits for a half-width that begins with
    100 to 354, and one digit for 355 to 949. An interval without 0 gets more decimals if its ends
    would be rounded to 0, because the verdict depends on their sign.
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
    """Both ends with equal decimals; without decimals if both are whole numbers."""
    ends = [round(end, places) for end in (spread.low, spread.high)]
    whole = all(end == round(end) for end in ends if math.isfinite(end))
    return [_fixed(end, 0 if whole else places) for end in ends]


def _fixed(number: float, places: int, signed: bool = False) -> str:
    """Number with a typographic minus sign. A number that is rounded to zero has no sign."""
    written = f"{number:+.{places}f}" if signed else f"{number:.{places}f}"
    if float(written) == 0:
        written = written.lstrip("+-")
    return written.replace("-", MINUS)


def best(columns: Sequence[Column], row: Row) -> set[str]:
    """Keys of a row's best numbers among the compared columns.

    Numbers that are equal after rounding are all best. Empty with fewer than two numbers.
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
