"""The page of a report: one HTML file that needs no network and believes no text in the results.

Tables and figures are written into it; what is behind a number is one JSON text in it, of which
the browser draws a run when it is asked for.
"""

import base64
import hashlib
import math
from pathlib import Path

from classification.report_runs import Runs
from classification.sections import Column, Section, Value

TEMPLATE, SCRIPT, STYLE = "report.html.jinja", "report.js", "report.css"
MISSING = "–"


def render(sections: list[Section], drawings: dict[str, str], runs: Runs, problems: list[str],
           files: list[str]) -> str:  # fmt: skip
    """The page.

    Args:
        drawings: figure's name -> its `<svg>` element, as `figures.inline` makes it.
        runs: what is behind the numbers.
        problems: a sentence each, about files that could not be read.
        files: the report's files, relative to the page: `"tables/<section>.csv"`, ...
    """
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    from robust_backbones import __version__

    folder = Path(__file__).parent
    script, style = ((folder / name).read_text(encoding="utf-8") for name in (SCRIPT, STYLE))
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template(TEMPLATE).render(
        sections=[s for s in sections if s.found or not s.wanted],
        empty=[s for s in sections if s.wanted and not s.found],
        missing={s.name: missing(s) for s in sections},
        drawings={name: Markup(svg) for name, svg in drawings.items()},
        runs=runs, problems=problems, files=_by_stem(files), version=__version__,
        script=Markup(script), style=Markup(style), script_hash=_digest(script),
    )  # fmt: skip


def cell(value, column: Column) -> dict:
    """What stands in a cell: `text`, and what a heading sorts by, `sort`, None if missing.

    Of a `Value` also `ends`, `note`, and `records`: which runs it comes from.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return {"text": MISSING, "sort": None, "number": column.digits is not None}
    if isinstance(value, Value):
        ends = [number(end, column) for end in (value.low, value.high) if end is not None]
        alike = value.low == value.high or len(ends) < 2
        return {
            "text": number(value.mean, column), "sort": value.mean, "number": True,
            "ends": "" if alike else " to ".join(ends), "note": value.note,
            "records": " ".join(map(str, value.records)),
        }  # fmt: skip
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"text": number(value, column), "sort": value, "number": True}
    return {"text": str(value), "sort": str(value), "number": False}


def number(value: float, column: Column) -> str:
    """With the decimals of its column and a real minus; of a difference also the plus."""
    digits = 0 if isinstance(value, int) or column.digits is None else column.digits
    sign = "+" if "difference" in column.name.lower() else ""
    text = f"{value:{sign}.{digits}f}" if column.digits is not None else f"{value:g}"
    return text.replace("-", "\u2212")


def missing(section: Section) -> list[str]:
    """Its rows in which something is missing, and the headings of what."""
    rows = []
    for row in section.rows:
        heads = [column.name for column, value in zip(section.columns, row, strict=True)
                 if value is None and column.digits is not None]  # fmt: skip
        if heads:
            texts = [str(value) for value in row if isinstance(value, str)]
            rows.append(f"{', '.join(texts) or 'a row'}: {', '.join(heads)}")
    return rows


def _by_stem(files: list[str]) -> dict[str, list[str]]:
    """`"tables/table1"` -> its files."""
    found = {}
    for name in files:
        found.setdefault(name.rsplit(".", 1)[0], []).append(name)
    return found


def _digest(script: str) -> str:
    """As a Content-Security-Policy names the only script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
