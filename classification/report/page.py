"""The page of a report: one HTML file that needs no network and believes no text in the results.

Tables and figures are written into it; what is behind a number is one JSON text in it, of which
the browser draws a run when it is asked for.
"""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from classification.report import page_table
from classification.report.page_runs import PageRuns
from classification.report.sections import Section
from robust_backbones.core import pages

TEMPLATE, SCRIPT, STYLE = "report.html.jinja", "report.js", "report.css"


def render(
    sections: list[Section],
    drawings: dict[str, str],
    runs: PageRuns,
    problems: list[str],
    files: list[str],
) -> str:
    """The page.

    Args:
        drawings: figure's name -> its `<svg>` element, as `figures.inline` makes it.
        runs: what is behind the numbers.
        problems: a sentence each, about files that could not be read.
        files: the report's files, relative to the page: `"tables/<section>.csv"`, ...
    """
    folder = Path(__file__).parent
    script, style = ((folder / name).read_text(encoding="utf-8") for name in (SCRIPT, STYLE))
    shown = [s for s in sections if s.found or not s.wanted]
    return pages.render(
        folder / TEMPLATE,
        sections=shown,
        tables={s.name: page_table.table(s) for s in shown},
        empty=[s for s in sections if s.wanted and not s.found],
        missing={s.name: page_table.missing(s) for s in shown},
        drawings={name: Markup(svg) for name, svg in drawings.items()},
        runs=runs,
        problems=problems,
        files=_by_stem(files),
        script=Markup(script),
        style=Markup(style),
        script_hash=_digest(script),
    )


def _by_stem(files: list[str]) -> dict[str, list[str]]:
    """`"tables/table1"` -> its files."""
    found = {}
    for name in files:
        found.setdefault(name.rsplit(".", 1)[0], []).append(name)
    return found


def _digest(script: str) -> str:
    """As a Content-Security-Policy names the only script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
