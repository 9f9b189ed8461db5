"""Render the page of a report as one HTML file that works offline.

Text from results is escaped, and the page's Content-Security-Policy allows only the page's own
script. The page contains the runs as JSON. Its script shows a run when the user clicks a number.
"""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from classification.report import page_table
from classification.report.answers import Answer
from classification.report.forest import forests
from classification.report.page_runs import PageRuns
from classification.report.sections import Section
from robust_backbones.core import pages

TEMPLATE, SCRIPT, STYLE = "report.html.jinja", "report.js", "report.css"


def render(
    answers: list[Answer],
    sections: list[Section],
    drawings: dict[str, str],
    runs: PageRuns,
    problems: list[str],
    files: list[str],
    margin: float | None = None,
) -> str:
    """Render the page.

    Args:
        answers: answers to show at the top of the page.
        sections: sections of the report.
        drawings: map from the name of a figure to its `<svg>` element from `figures.inline`.
        runs: runs behind the numbers.
        problems: sentences about unreadable files.
        files: paths of the report's files relative to the page, such as `"tables/table1.csv"`.
        margin: margin to draw in all forest plots, in points; None: draw the margin of the
                verdicts, only where a verdict uses it.
    """
    folder = Path(__file__).parent
    script, style = ((folder / name).read_text(encoding="utf-8") for name in (SCRIPT, STYLE))
    shown = [s for s in sections if s.found or not s.wanted]
    return pages.render(
        folder / TEMPLATE,
        answers=answers,
        forests=forests(answers, margin),
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
    """Map each path without its extension, such as `"tables/table1"`, to its files."""
    found: dict[str, list[str]] = {}
    for name in files:
        found.setdefault(name.rsplit(".", 1)[0], []).append(name)
    return found


def _digest(script: str) -> str:
    """Return the SHA-256 of the script in base64, as a Content-Security-Policy requires."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
