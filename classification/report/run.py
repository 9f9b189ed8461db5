"""Write a report: build the sections from results, and save the page, tables and figures."""

import json
from dataclasses import dataclass
from pathlib import Path

from classification.report import figures, folder, forest, page, page_runs, tables
from classification.report.answers import Answer, find_answers
from classification.report.comparisons import Rules
from classification.report.contents.build import build_sections, collect
from classification.report.contents.parts import Results
from classification.report.contents.unshown import unshown
from classification.report.records import Record
from classification.report.sections import Figure, Section
from classification.report.verdicts import MARGIN
from robust_backbones.core.files import atomic, claimed


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        answers: sentences at the top of the page.
        sections: sections of the page.
        problems: sentences about unreadable files and results that are not shown.
        page: path of the page.
        forest: path of the figure with all forest plots; None: there are no verdicts.
    """

    answers: list[Answer]
    sections: list[Section]
    problems: list[str]
    page: Path
    forest: Path | None


def make(
    found: list[Record],
    problems: list[str],
    output: Path,
    study: Path | None = None,
    margin: float | None = None,
) -> Report:
    """Write the report.

    Args:
        found: results from `records.read`.
        problems: messages about unreadable files, which the report shows as warnings.
        output: folder for the report.
        study: study file, whose runs the report lists as well; None: no study.
        margin: largest difference that counts as no difference, in points; None: `MARGIN`.
    """
    rules = Rules(MARGIN if margin is None else margin, folder.older_looks(output))
    results = collect(found, study, rules)
    sections = build_sections(results)
    problems = problems + unshown(results, sections)
    answers = find_answers(results)
    path = write(results, answers, sections, problems, output, margin)
    plot = output / folder.FIGURES / f"{forest.FIGURE}.svg"
    return Report(answers, sections, problems, path, plot if plot.exists() else None)


def run(
    found: list[Record],
    problems: list[str],
    output: Path,
    study: Path | None = None,
    margin: float | None = None,
) -> Path:
    """Write the report and print a line for each section. `make` has the arguments.

    Returns:
        Path of the page.
    """
    report = make(found, problems, output, study, margin)
    for answer in report.answers:
        print(answer)
    for text in report.problems:
        print(f"warning: {text}")
    for section in report.sections:
        count = len(section.warnings)
        warned = f", {count} warning{'s' * (count > 1)}" if count else ""
        print(f"{section.name}: {section.found} of {section.wanted} numbers{warned}")
    print(report.page)
    return report.page


def write(
    results: Results,
    answers: list[Answer],
    sections: list[Section],
    problems: list[str],
    output: Path,
    margin: float | None = None,
) -> Path:
    """Write all files of a report. Each file is written atomically, and the page last.

    Args:
        results: results behind the answers and sections.
        answers: answers to show at the top of the page.
        sections: sections of the report.
        problems: sentences about unreadable files and results that are not shown.
        output: folder for the report.
        margin: margin from the user in percentage points; None: the user gave no margin.

    Returns:
        Path of the page.
    """
    runs = page_runs.collect_runs(results.records)
    shown = [figure for section in sections for figure in section.figures]
    if plots := forest.figure(answers, results.rules.margin):
        shown.append(plots)
    files, drawings = _draw(shown, "simulated" if runs.simulated else "")
    files |= _tables(sections)
    assert all(name == Path(name).as_posix() and name.count("/") == 1 for name in files)
    html = page.render(answers, sections, drawings, runs, problems, list(files), margin)
    with claimed(output):
        older = set(folder.older_files(output) or ())
        contents = {
            "kind": folder.KIND,
            "answers": [answer.json() for answer in answers],
            "files": sorted(older | set(files)),
            "looks": results.rules.looks,
        }
        # This file is written first. If the process is killed, the next run recognizes the report.
        files = {
            folder.CONTENTS: json.dumps(contents, indent=1).encode(),
            **files,
            folder.MARKDOWN: _markdown(answers, sections).encode(),
            folder.PAGE: html.encode(),
        }
        for name, data in files.items():
            with atomic(output / name) as temporary:
                temporary.write_bytes(data)
        for name in older - set(files):
            (output / name).unlink(missing_ok=True)
    return output / folder.PAGE


def _draw(shown: list[Figure], watermark: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Draw figures.

    Returns:
        A map from file names to contents, and a map from figure names to `<svg>` elements.
    """
    files, drawings = {}, {}
    for figure in shown:
        svg, png = figures.draw(figure, watermark)
        files[f"{folder.FIGURES}/{figure.name}.svg"] = svg.encode()
        files[f"{folder.FIGURES}/{figure.name}.png"] = png
        drawings[figure.name] = figures.inline(svg, figure.title)
    return files, drawings


def _markdown(answers: list[Answer], sections: list[Section]) -> str:
    """Return the answers and all tables as one Markdown text."""
    escape = tables.MARKDOWN.escape
    lines = [
        f"- **{escape(answer.question)}:** {escape(' '.join([answer.text, *answer.cautions]))}"
        for answer in answers
    ]
    return "\n".join([*lines, "", *map(tables.markdown, sections)])


def _tables(sections: list[Section]) -> dict[str, bytes]:
    """Return a map from file names to contents: the table of each section in each format."""
    return {
        f"{folder.TABLES}/{section.name}.{ending}": form(section).encode()
        for section in sections
        if section.rows
        for ending, form in tables.FORMS.items()
    }
