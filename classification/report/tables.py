"""A section's table as Markdown, CSV and LaTeX."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from classification.report.sections import Column, Section, Value

# What LaTeX reads as commands, and signs that not each of its fonts has.
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
    """How a form writes text, the best number of a row, and nothing."""

    escape: Callable[[str], str]
    bold: Callable[[str], str]
    missing: str


def _escaper(table: dict[str, str]) -> Callable[[str], str]:
    codes = str.maketrans(table | dict.fromkeys(map(chr, range(32)), " "))
    return lambda text: text.translate(codes)


_plain_markdown = _escaper(_MARKDOWN)
MARKDOWN = Markup(
    lambda text: _plain_markdown(text).replace("](", "]\\("), lambda text: f"**{text}**", ""
)
LATEX = Markup(_escaper(_LATEX), lambda text: rf"\textbf{{{text}}}", "--")


def markdown(section: Section) -> str:
    """With its title, paragraphs and warnings; a table as GitHub draws it."""
    escape = MARKDOWN.escape
    lines = [f"## {escape(section.title)}", ""]
    for paragraph in section.text:
        lines += [escape(paragraph), ""]
    for warning in section.warnings:
        lines += [f"> **Warning:** {escape(warning)}", ""]
    if section.rows:
        lines.append(_piped([escape(column.name) for column in section.columns]))
        lines.append(_piped(["---" if c.digits is None else "---:" for c in section.columns]))
        lines += [_piped(cells(section.columns, row, MARKDOWN)) for row in section.rows]
    return "\n".join(lines).rstrip() + "\n"


def _piped(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def latex(section: Section) -> str:
    r"""A `table` that needs `\usepackage{booktabs}`; paragraphs and warnings are comments."""
    escape = LATEX.escape
    notes = [*section.text, *(f"Warning: {warning}" for warning in section.warnings)]
    lines = [f"% {' '.join(note.split())}" for note in notes]
    shape = "".join("l" if column.digits is None else "r" for column in section.columns)
    body = [cells(section.columns, row, LATEX) for row in section.rows]
    lines += [
        r"\begin{table}",
        rf"\caption{{{escape(section.title)}}}",
        rf"\label{{tab:{section.name}}}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        " & ".join(escape(column.name) for column in section.columns) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def comma(section: Section) -> str:
    """CSV for programs: plain numbers; a column of `Value`s becomes four, and one more of notes
    where there are some."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [_spread(column, i, section.rows) for i, column in enumerate(section.columns)]
    writer.writerow([_plain(name) for part in parts for name in part])
    for row in section.rows:
        writer.writerow(
            [
                _plain(get(cell))
                for part, cell in zip(parts, row, strict=True)
                for get in part.values()
            ]
        )
    return text.getvalue()


FORMS = {"md": markdown, "csv": comma, "tex": latex}


def _spread(column: Column, place: int, rows: list[list]) -> dict[str, Callable]:
    """Heading -> what stands under it, of a cell."""
    values = [row[place] for row in rows if isinstance(row[place], Value)]
    found = {column.name: lambda cell: cell.mean if isinstance(cell, Value) else cell}
    names = ["low", "high", "trials"] if values else []
    if any(value.note for value in values):
        names.append("note")
    return found | {
        f"{column.name}: {name}": lambda cell, name=name: getattr(cell, name, None)
        for name in names
    }


def _plain(value: Any) -> Any:
    """What a spreadsheet would take for a formula gets an apostrophe, which makes it a text."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return _number_of(value)


def _number_of(value: Any) -> Any:
    """Six digits are more than any of these numbers has."""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return "" if value is None else value


def cells(columns: list[Column], row: list, markup: Markup) -> list[str]:
    """A row as text, the best number of compared columns in bold."""
    top = best(columns, row)
    texts = []
    for i, (column, cell) in enumerate(zip(columns, row, strict=True)):
        text = markup.escape(words(cell, column.digits)) or markup.missing
        texts.append(markup.bold(text) if i in top else text)
    return texts


def words(cell: Any, digits: int | None) -> str:
    """A cell as plain text: a mean with its ends `(low–high)`, its interval `[low, high]`, or its
    standard deviation; empty for what is missing."""
    if isinstance(cell, str) or cell is None:
        return cell or ""
    digits = 2 if digits is None else digits
    if not isinstance(cell, Value):
        return _number(cell, digits)
    mean = _number(cell.mean, digits)
    if cell.low is None or cell.high is None or not mean:
        return mean
    low, high = _number(cell.low, digits), _number(cell.high, digits)
    if "standard deviation" in cell.note:
        return f"{mean} ± {_number(cell.high - cell.mean, digits)}"
    return f"{mean} [{low}, {high}]" if "interval" in cell.note else f"{mean} ({low}–{high})"


def _number(value: float, digits: int) -> str:
    """With a real minus sign; a rounded zero has none."""
    if not math.isfinite(value):
        return ""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def best(columns: list[Column], row: list) -> set[int]:
    """Places of the best numbers, as they are printed: equals are all of them best. Empty where
    there is nothing to compare."""
    found = set()
    for kind, choose in (("high", max), ("low", min)):
        numbers = {
            i: round(cell.mean if isinstance(cell, Value) else cell, column.digits or 0)
            for i, (column, cell) in enumerate(zip(columns, row, strict=True))
            if column.best == kind and cell is not None and not isinstance(cell, str)
        }
        if len(numbers) > 1:
            top = choose(numbers.values())
            found |= {i for i, number in numbers.items() if number == top}
    return found
