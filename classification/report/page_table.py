"""Prepare a section's table for the page: the text and the sort key of each cell."""

from collections import Counter
from dataclasses import dataclass

from classification.report import numbers
from classification.report.sections import Cell, Column, Section, Value

MISSING = "–"


@dataclass(frozen=True)
class PageCell:
    """Cell of a table on the page.

    Attributes:
        text: text of the cell, without the spread of a number.
        sort: sort key, a number or text; None if the cell is missing.
        number: whether the cell is in a numeric column.
        spread: text of the spread.
        note: description of the spread; empty if the heading of the column contains it.
        records: indices of the runs behind the number, separated by spaces.
        best: whether the cell contains the best number of its row.
    """

    text: str = MISSING
    sort: float | str | None = None
    number: bool = False
    spread: str = ""
    note: str = ""
    records: str = ""
    best: bool = False


def table(section: Section) -> tuple[list[tuple[Column, str]], list[list[PageCell]]]:
    """Return the columns and the rows of a section's table.

    Each column is paired with the most frequent description of its spreads.
    """
    shared = {c.key: _shared([row[c.key] for row in section.rows]) for c in section.columns}
    rows = []
    for row in section.rows:
        best = numbers.best(section.columns, row)
        rows.append(
            [page_cell(row[c.key], c, shared[c.key], c.key in best) for c in section.columns]
        )
    return [(column, shared[column.key]) for column in section.columns], rows


def _shared(cells: list[Cell]) -> str:
    """Return the most frequent description of the spreads in a column.

    The result is empty if a spread has no description, or with fewer than two values.
    """
    words = Counter(cell.words for cell in cells if isinstance(cell, Value))
    return "" if "" in words or words.total() < 2 else words.most_common(1)[0][0]


def page_cell(cell: Cell, column: Column, shared: str = "", best: bool = False) -> PageCell:
    """Convert a cell of a section to a cell of the page.

    Args:
        cell: cell of the section.
        column: column of the cell.
        shared: description of the spreads in the heading of the column.
        best: whether the cell contains the best number of its row.
    """
    if not column.kind.numeric:
        return PageCell() if cell is None else PageCell(str(cell), str(cell))
    number = numbers.number_of(cell)
    if number is None:
        return PageCell(number=True)
    text, spread = numbers.parts(cell, column.kind)
    if not isinstance(cell, Value):
        return PageCell(text, number, True, best=best)
    note = "" if cell.words == shared else cell.words
    return PageCell(text, number, True, spread, note, " ".join(map(str, cell.records)), best)


def missing(section: Section) -> list[str]:
    """Describe each row with missing numbers by its text and the headings of these numbers."""
    rows = []
    for row in section.rows:
        headings = [c.heading for c in section.columns if c.kind.numeric and row[c.key] is None]
        if headings:
            texts = [cell for cell in row.values() if isinstance(cell, str) and cell]
            rows.append(f"{', '.join(texts) or 'a row'}: {', '.join(headings)}")
    return rows
