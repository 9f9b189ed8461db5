"""Format the table of a section as Markdown, CSV and LaTeX."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from classification.report import numbers
from classification.report.sections import Cell, Column, Row, Section, Value

# Replacements for special characters of LaTeX, and for characters that some of its fonts lack.
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "²": r"$^2$",
    "±": r"$\pm$",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "ε": r"$\varepsilon$",
}
_MARKDOWN = {"\\": "\\\\", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`", "<": "&lt;"}


@dataclass(frozen=True)
class Markup:
    """Syntax of a text format, such as Markdown.

    Attributes:
        escape: function that escapes the special characters in a text.
        bold: function that marks a text as bold.
        missing: text of a missing cell.
    """

    escape: Callable[[str], str]
    bold: Callable[[str], str]
    missing: str


def _escaper(table: dict[str, str]) -> Callable[[str], str]:
    codes = str.maketrans(table | dict.fromkeys(map(chr, range(32)), " "))
    return lambda text: text.translate(codes)


_escape_markdown = _escaper(_MARKDOWN)
MARKDOWN = Markup(
    lambda text: _escape_markdown(text).replace("](", "]\\("), lambda text: f"**{text}**", ""
)
LATEX = Markup(_escaper(_LATEX), lambda text: rf"\textbf{{{text}}}", "--")


def markdown(section: Section) -> str:
    """Format a section as GitHub-flavored Markdown, with its title, paragraphs and warnings."""
    escape = MARKDOWN.escape
    lines = [f"## {escape(section.title)}", ""]
    for paragraph in section.text:
        lines += [escape(paragraph), ""]
    for warning in section.warnings:
        lines += [f"> **Warning:** {escape(warning)}", ""]
    if section.rows:
        lines.append(_markdown_row([escape(column.heading) for column in section.columns]))
        lines.append(_markdown_row(["---:" if c.kind.numeric else "---" for c in section.columns]))
        lines += [_markdown_row(cells(section.columns, row, MARKDOWN)) for row in section.rows]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def latex(section: Section) -> str:
    r"""Format a section as a LaTeX `table`, which needs `\usepackage{booktabs}`.

    Paragraphs and warnings become LaTeX comments.
    """
    escape = LATEX.escape
    comments = [*section.text, *(f"Warning: {warning}" for warning in section.warnings)]
    alignment = "".join("r" if column.kind.numeric else "l" for column in section.columns)
    body = [cells(section.columns, row, LATEX) for row in section.rows]
    lines = [
        *(f"% {' '.join(comment.split())}" for comment in comments),
        r"\begin{table}",
        rf"\caption{{{escape(section.title)}}}",
        rf"\label{{tab:{section.name}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(escape(column.heading) for column in section.columns) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def cells(columns: list[Column], row: Row, markup: Markup) -> list[str]:
    """Return the text of each cell of a row. The best number of the compared columns is bold."""
    best = numbers.best(columns, row)
    texts = []
    for column in columns:
        text = markup.escape(numbers.text(row[column.key], column.kind)) or markup.missing
        texts.append(markup.bold(text) if column.key in best else text)
    return texts


def comma(section: Section) -> str:
    """Format a table as CSV for programs, with column keys as headings and plain numbers.

    A column of `Value`s becomes four columns: number, low end, high end and number of trials. A
    fifth column describes the spreads if they need a description.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [_csv_columns(column, section.rows) for column in section.columns]
    writer.writerow([_plain(key) for part in parts for key in part])
    for row in section.rows:
        pairs = zip(section.columns, parts, strict=True)
        writer.writerow(
            [_plain(get(row[column.key])) for column, part in pairs for get in part.values()]
        )
    return text.getvalue()


FORMS = {"md": markdown, "csv": comma, "tex": latex}


def _csv_columns(column: Column, rows: list[Row]) -> dict[str, Callable[[Cell], Any]]:
    """Map the heading of each CSV column to a function that reads its entry from a cell."""
    values = [cell for row in rows if isinstance(cell := row[column.key], Value)]
    found: dict[str, Callable[[Cell], Any]] = {column.key: _of_value(lambda v: v.mean, True)}
    if values:
        found |= {
            f"{column.key}_low": _of_value(lambda value: value.ends[0]),
            f"{column.key}_high": _of_value(lambda value: value.ends[1]),
            f"{column.key}_trials": _of_value(lambda value: value.trials),
        }
    if any(value.words for value in values):
        found[f"{column.key}_spread"] = _of_value(lambda value: value.words)
    return found


def _of_value(get: Callable[[Value], Any], plain: bool = False) -> Callable[[Cell], Any]:
    """Return a function that applies `get` to a `Value`.

    It returns other cells unchanged if `plain`, and None otherwise.
    """
    return lambda cell: get(cell) if isinstance(cell, Value) else cell if plain else None


def _plain(entry: Any) -> Any:
    """Convert a value to an entry of a CSV file.

    Numbers have six significant digits. Text that a spreadsheet would execute as a formula gets an
    apostrophe in front.
    """
    if isinstance(entry, str) and entry[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{entry}"
    if isinstance(entry, float):
        return f"{entry:.6g}" if math.isfinite(entry) else ""
    return "" if entry is None else entry
