"""Data classes for the contents of a report: sections with a table and figures.

The package `contents` builds the sections from results. The page and the table files show them.
"""

from dataclasses import dataclass, field
from enum import Enum, auto


@dataclass(frozen=True)
class Ends:
    """Spread of a mean over trials: the lowest and the highest trial."""

    low: float
    high: float

    @property
    def words(self) -> str:
        """Empty description, because the top of the page explains this spread once."""
        return ""

    def around(self, mean: float) -> tuple[float, float]:
        """Return the low and the high end."""
        return self.low, self.high


@dataclass(frozen=True)
class Interval:
    """Confidence interval.

    Attributes:
        low, high: ends of the interval.
        confidence: confidence level, in (0, 1).
        over: sources of variation that the interval covers, in words.
    """

    low: float
    high: float
    confidence: float
    over: str

    @property
    def words(self) -> str:
        """Description of the interval for the reader."""
        return f"{100 * self.confidence:g} % interval over {self.over}"

    def around(self, mean: float) -> tuple[float, float]:
        """Return the low and the high end."""
        return self.low, self.high


@dataclass(frozen=True)
class StdDev:
    """Standard deviation `size` over runs with different seeds."""

    size: float

    @property
    def words(self) -> str:
        """Description of the spread for the reader."""
        return "standard deviation over runs"

    def around(self, mean: float) -> tuple[float, float]:
        """Return the ends one standard deviation below and above the mean."""
        return mean - self.size, mean + self.size


@dataclass(frozen=True)
class Value:
    """Measured number, in the unit of its column.

    Attributes:
        mean: mean over trials or runs.
        spread: spread around the mean; None if unknown, for example with a single trial.
        trials: number of trials or runs.
        records: indices, into the report's list of records, of the runs that this value
            summarizes.
    """

    mean: float
    spread: Ends | Interval | StdDev | None = None
    trials: int = 1
    records: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """Description to show with the spread; empty if the spread needs no description."""
        return self.spread.words if self.spread else ""

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Low and high end of the spread, or None for both ends without a spread."""
        return self.spread.around(self.mean) if self.spread else (None, None)


Cell = str | int | float | Value | None
Row = dict[str, Cell]  # maps the key of a column to its cell


class Kind(Enum):
    """Kind of the cells in a column. It determines how the cells are formatted and compared.

    `numbers.FORMATS` has the format of each kind.
    """

    TEXT = auto()
    COUNT = auto()  # whole number
    ACCURACY = auto()  # accuracy or AP, percent
    DIFFERENCE = auto()  # percentage points, with a sign
    P_VALUE = auto()
    SLOPE = auto()  # slope of a fitted line
    R_SQUARED = auto()
    RANK = auto()  # average rank; rank 1 is best
    SHARE = auto()  # fraction, in percent without decimals
    MEASURE = auto()  # any other measured number

    @property
    def numeric(self) -> bool:
        """Whether the cells are numbers."""
        return self is not Kind.TEXT


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        key: key of the cells in the rows. The CSV file uses it as the heading.
        heading: heading on the page, in Markdown and in LaTeX; empty: the key with spaces instead
            of underscores. The wording can be changed freely.
        kind: kind of the cells.
        paper: whether the cells contain or depend on numbers from the paper.
        optional: whether the column is dropped if all its cells are empty. Columns with `paper` are
            always optional.
        compared: whether the column competes for the best number of a row, which is bold.
    """

    key: str
    heading: str = ""
    kind: Kind = Kind.TEXT
    paper: bool = False
    optional: bool = False
    compared: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "heading", self.heading or self.key.replace("_", " "))


@dataclass(frozen=True)
class Series:
    """Line, set of bars, or set of scatter points in a figure.

    Attributes:
        label: name in the legend.
        x: numbers or categories on the x axis.
        y: values in percent; None: missing value.
        low, high: ends of the error bars, one for each `y`; empty: no error bars.
        labels: names of the points of a scatter plot; empty: no names.
        fit: `(slope, intercept)` of a line to draw through a scatter plot; None: no line.
        published: whether the values are from the paper.
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
    """Figure of a section.

    Attributes:
        name: name of the figure's files, without extension.
        kind: type of the plot: `"bars"` (x are categories), `"curves"` (x are numbers, with lines
            between the points), `"scatter"` or `"forest"` (x are categories, one below the other).
        title, x_label, y_label: text on the figure.
        panels: map from the heading of a panel to its series. A figure with a single plot has one
            panel with an empty heading.
        log_x: whether the x axis is logarithmic, with a separate position for 0 on the left.
        margin: half-width of the band around 0 in a forest plot; None: no band.
        x_limits: ends of the x axis. Intervals that run off the axis are wider. None: all is shown.
    """

    name: str
    kind: str
    title: str
    x_label: str
    y_label: str
    panels: dict[str, list[Series]]
    log_x: bool = False
    margin: float | None = None
    x_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Section:
    """Section of a report: a table with its figures.

    Attributes:
        name: name in file names and links, such as `"table1"`.
        title: heading of the section.
        text: paragraphs that explain the table.
        columns: columns of the table. Optional columns without cells are dropped.
        rows: map from column keys to cells for each row. Missing cells become None.
        figures: figures to show above the table.
        warnings: reasons not to compare or trust the numbers, one sentence each.
        found, wanted: number of cells that contain a number, and number of cells that should.
    """

    name: str
    title: str
    text: list[str]
    columns: list[Column]
    rows: list[Row]
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    found: int = 0
    wanted: int = 0

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        assert len(set(keys)) == len(keys), keys
        assert all(row.keys() <= set(keys) for row in self.rows), (keys, [*map(list, self.rows)])
        shown = [column for column in self.columns if self._has_cells(column)]
        rows = [{column.key: row.get(column.key) for column in shown} for row in self.rows]
        object.__setattr__(self, "columns", shown)
        object.__setattr__(self, "rows", rows)

    def _has_cells(self, column: Column) -> bool:
        if not (column.optional or column.paper):
            return True
        return any(row.get(column.key) not in (None, "") for row in self.rows)
