"""A section's table as the page shows it: what stands in a cell, and what a heading sorts by."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from classification.report import tables
from classification.report.sections import Column, Section, Value

MISSING = "–"
_SIGNED = re.compile(r"\b(?<!critical )(difference|gain|selection bias)\b| - ", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """Attributes:
    text: what stands there.
    sort: what its heading sorts by; None if missing.
    number: whether `sort` is one.
    ends: lowest and highest trial, or what `note` calls them.
    note: what must be read with it, unless it stands in the heading.
    records: places of its runs, with blanks between.
    best: of those that its row compares.
    """

    text: str = MISSING
    sort: float | str | None = None
    number: bool = False
    ends: str = ""
    note: str = ""
    records: str = ""
    best: bool = False


def table(section: Section) -> tuple[list[tuple[Column, str]], list[list[Cell]]]:
    """Columns, each with what must be read with all its numbers; and the rows."""
    heads = []
    for place, column in enumerate(section.columns):
        heads.append((column, _shared([row[place] for row in section.rows])))
    rows = []
    for row in section.rows:
        best = tables.best(section.columns, row)
        pairs = enumerate(zip(row, heads, strict=True))
        rows.append([cell(value, *head, i in best) for i, (value, head) in pairs])
    return heads, rows


def _shared(values: list) -> str:
    """The note that most of a column's values have, if each has one."""
    notes = Counter(value.note for value in values if isinstance(value, Value))
    return "" if "" in notes or notes.total() < 2 else notes.most_common(1)[0][0]


def cell(value: Any, column: Column, shared: str = "", best: bool = False) -> Cell:
    """What stands for a value.

    Args:
        shared: the note that stands in the heading already.
        best: of its row.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Cell(number=column.digits is not None)
    if isinstance(value, Value):
        return Cell(
            number(value.mean, column),
            value.mean,
            True,
            _ends(value, column),
            "" if value.note == shared else value.note,
            " ".join(map(str, value.records)),
            best,
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(number(value, column), value, True, best=best)
    return Cell(str(value), str(value))


def _ends(value: Value, column: Column) -> str:
    if value.low is None or value.high is None or value.low == value.high:
        return ""
    if "standard deviation" in value.note:
        return f"± {number(value.high - value.mean, Column('', column.digits))}"
    low, high = (number(end, column) for end in (value.low, value.high))
    return f"[{low}, {high}]" if "interval" in value.note else f"{low} to {high}"


def number(value: float, column: Column) -> str:
    """With the decimals of its column and a real minus; of a difference also the plus."""
    digits = 0 if isinstance(value, int) or column.digits is None else column.digits
    sign = "+" if _SIGNED.search(column.name) else ""
    text = f"{value:{sign}.{digits}f}" if column.digits is not None else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


def missing(section: Section) -> list[str]:
    """Its rows in which something is missing, and the headings of what."""
    rows = []
    for row in section.rows:
        heads = [
            column.name
            for column, value in zip(section.columns, row, strict=True)
            if value is None and column.digits is not None
        ]
        if heads:
            texts = [value for value in row if isinstance(value, str) and value]
            rows.append(f"{', '.join(texts) or 'a row'}: {', '.join(heads)}")
    return rows
