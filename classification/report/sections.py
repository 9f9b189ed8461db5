"""What a report is made of: sections with a table, figures, and what is missing. Plain data: the
exhibits make them from results, the page and the tables show them.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Value:
    """A measured number, percent unless its column says otherwise.

    Attributes:
        mean: over trials or seeds.
        low, high: their ends, or an interval where the column says so; None of a single one.
        trials: how many there are.
        records: places in the report's list of records, for looking at the runs behind it.
        note: words that the number must not be read without. With "interval" in them, `low` and
            `high` are one; with "standard deviation" they are that far from the mean.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    trials: int = 1
    records: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Column:
    """Attributes:
    name: heading.
    digits: decimals of its numbers; None for text.
    best: `"high"` or `"low"`: of the columns that have the same, a row's best number is told apart
        by bold print; empty: not compared.
    """

    name: str
    digits: int | None = 2
    best: str = ""


@dataclass(frozen=True)
class Series:
    """One line, set of bars or cloud of a figure.

    Attributes:
        x: numbers, or categories.
        y: percent; None where nothing is.
        low, high: ends of the error bars, as long as `y`, or empty.
        labels: of the points of a scatter, or empty.
        fit: `(slope, intercept)` of a line to draw through a scatter.
        published: the paper's numbers, not ours.
    """

    label: str
    x: list
    y: list[float | None]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    fit: tuple[float, float] | None = None
    published: bool = False


@dataclass(frozen=True)
class Figure:
    """Attributes:
    name: of its files, without ending.
    kind: `"bars"` (x are categories), `"curves"` (x numbers, joined by lines) or `"scatter"`.
    panels: heading -> what is drawn there; one panel under the heading "" for a single plot.
    log_x: logarithmic x axis; 0 has a place of its own left of it.
    """

    name: str
    kind: str
    title: str
    x_label: str
    y_label: str
    panels: dict[str, list[Series]]
    log_x: bool = False


@dataclass(frozen=True)
class Section:
    """One exhibit.

    Attributes:
        name: of its files and links: `"table1"`.
        text: paragraphs: what it shows, by which definition.
        rows: as long as `columns`: text, a number, a `Value`, or None for what is missing.
        warnings: why it must not be compared or believed as it stands, a sentence each.
        found, wanted: cells that have a number, and cells that the exhibit has.
    """

    name: str
    title: str
    text: list[str]
    columns: list[Column]
    rows: list[list]
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    found: int = 0
    wanted: int = 0
