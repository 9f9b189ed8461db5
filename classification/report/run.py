"""Write a report: read results, build the sections, save page, tables and figures."""

import json
from pathlib import Path

from classification.report import exhibits, figures, page, page_runs, records, tables
from classification.report.comparisons import Rules
from classification.report.records import Record
from classification.report.sections import Section
from classification.report.verdicts import MARGIN
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, claimed

PAGE, CONTENTS = "index.html", "report.json"
FOLDERS = ("tables", "figures")
KIND = "robust-backbones report"


def run(
    results: list[Path], output: Path, study: Path | None = None, margin: float | None = None
) -> Path:
    """Write the report and print a line for each section.

    Args:
        results: folders with results, or result files.
        output: folder for the report.
        study: study file whose runs are listed as well.
        margin: largest difference that counts as no difference, points; None: `MARGIN`.

    Returns:
        Path of the page.

    Raises:
        UserError: there are no results, or `output` contains files that are not a report's.
    """
    check_output(output)
    found, problems = records.read(results)
    if not found:
        more = f" {' '.join(problems[:3])}" if problems else ""
        raise UserError(
            f"no results in {', '.join(map(str, results))}. Give folders that contain "
            f"result.json files.{more}"
        )
    rules = Rules(MARGIN if margin is None else margin, _read_looks(output))
    sections = exhibits.sections(found, study, rules)
    path = write(sections, found, problems, output, rules.looks)
    for text in problems:
        print(f"warning: {text}")
    for section in sections:
        count = len(section.warnings)
        warned = f", {count} warning{'s' * (count > 1)}" if count else ""
        print(f"{section.name}: {section.found} of {section.wanted} numbers{warned}")
    print(path)
    return path


def check_output(output: Path) -> None:
    """Refuse to write into a folder that contains other files.

    Raises:
        UserError: `output` is a file, cannot be read, or contains files but no report.
    """
    try:
        names = {path.name for path in output.iterdir()} if output.exists() else set()
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot read this folder ({error.strerror}). Choose another folder."
        ) from None
    if names - {".lock"} and _older_files(output) is None:
        raise UserError(
            f"--output {output}: the folder contains files but no report. Choose another folder."
        )


def _read_looks(output: Path) -> dict[str, list[str]]:
    """Read the numbers of trials with which earlier reports in this folder gave verdicts."""
    try:
        looks = json.loads((output / CONTENTS).read_text(encoding="utf-8"))["looks"]
        return {str(name): list(map(str, trials)) for name, trials in looks.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _older_files(output: Path) -> list[str] | None:
    """List the tables and figures of an older report, relative to `output`; None: no report."""
    try:
        contents = json.loads((output / CONTENTS).read_text(encoding="utf-8"))
        if contents["kind"] != KIND:
            return None
        paths = [Path(name) for name in contents["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    # These files are deleted later. An edited list must not delete files of the user.
    return [str(p) for p in paths if len(p.parts) == 2 and p.parts[0] in FOLDERS]


def write(
    sections: list[Section],
    found: list[Record],
    problems: list[str],
    output: Path,
    looks: dict[str, list[str]] | None = None,
) -> Path:
    """Write all files of a report, each atomically, the page last.

    Args:
        found: the records to whose indices the sections' values refer.
        problems: sentences about unreadable files, for the top of the page.
        looks: looks from `comparisons.Rules`, saved for the next report in this folder.

    Returns:
        Path of the page.
    """
    runs = page_runs.gather(found)
    files, drawings = _draw(sections, "simulated" if runs.simulated else "")
    files |= _tables(sections)
    assert all(name == Path(name).as_posix() and name.count("/") == 1 for name in files)
    html = page.render(sections, drawings, runs, problems, list(files))
    with claimed(output):
        older = set(_older_files(output) or ())
        contents = {"kind": KIND, "files": sorted(older | set(files)), "looks": looks or {}}
        # Written first: if the process is killed, the next one recognizes the folder as a report.
        files = {CONTENTS: json.dumps(contents, indent=1).encode(), **files, PAGE: html.encode()}
        for name, data in files.items():
            with atomic(output / name) as temporary:
                temporary.write_bytes(data)
        for name in older - set(files):
            (output / name).unlink(missing_ok=True)
    return output / PAGE


def _draw(sections: list[Section], watermark: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Draw all figures.

    Returns:
        Map from file name to contents, and map from the figure's name to its `<svg>` element.
    """
    files, drawings = {}, {}
    for figure in (figure for section in sections for figure in section.figures):
        svg, png = figures.draw(figure, watermark)
        files[f"figures/{figure.name}.svg"] = svg.encode()
        files[f"figures/{figure.name}.png"] = png
        drawings[figure.name] = figures.inline(svg, figure.title)
    return files, drawings


def _tables(sections: list[Section]) -> dict[str, bytes]:
    """Map from file name to contents of each section's table in each format."""
    return {
        f"tables/{section.name}.{ending}": form(section).encode()
        for section in sections
        if section.rows
        for ending, form in tables.FORMS.items()
    }
