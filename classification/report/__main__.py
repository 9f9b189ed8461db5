"""Tables, figures and a page from results, next to the paper's numbers.

python -m classification.report output/transfer --out output/report
python -m classification.report output/studies/table1 --out output/report \\
    --study configs/studies/table1.yaml

Writes DIR/index.html, one page that needs no network; DIR/tables with CSV, Markdown and LaTeX;
DIR/figures with SVG and PNG. A second time it replaces what it wrote, and nothing else.

Exit codes: 0 written, 2 a mistake of the user.
"""

import json
from pathlib import Path

# matplotlib, and what else is heavy, waits for `main`: --help is to come at once.
from classification import options
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors

PAGE, LIST = "index.html", "report.json"
FOLDERS = ("tables", "figures")
KIND = "robust-backbones report"


def main(argv: list[str] | None = None) -> None:
    """Parse, read, write. Exit codes as said above."""
    args = _parser().parse_args(argv)
    with user_errors():
        run(args.results, args.out, args.study, args.margin)


def _parser() -> Parser:
    p = Parser("python -m classification.report", description=__doc__)
    p.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="folders, however deep, or result.json files",
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the report: new, empty, or an older report",
    )
    p.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="study file: its table and what is missing of it, too",
    )
    p.add_argument(
        "--margin",
        type=options.radius,
        default=1.0,
        metavar="POINTS",
        help="largest difference in accuracy or AP that counts as none, percentage "
        "points (default: 1)",
    )
    return p


def run(results: list[Path], out: Path, study: Path | None = None, margin: float = 1.0) -> Path:
    """Make the report; prints a line for each exhibit. Returns the page.

    Raises:
        UserError: no results, or `out` holds something else.
    """
    from classification.report import records

    check(out)
    found, problems = records.read(results)
    if not found:
        more = f" {' '.join(problems[:3])}" if problems else ""
        raise UserError(
            f"no results in {', '.join(map(str, results))}; give folders that hold "
            f"result.json files.{more}"
        )
    from classification.report import comparisons, exhibits

    rules = comparisons.Rules(margin, _looks(out))
    sections = exhibits.sections(found, study, rules)
    page = write(sections, found, problems, out, rules.looks)
    for text in problems:
        print(f"warning: {text}")
    for section in sections:
        count = len(section.warnings)
        warned = f", {count} warning{'s' * (count > 1)}" if count else ""
        print(f"{section.name}: {section.found} of {section.wanted} numbers{warned}")
    print(page)
    return page


def check(out: Path) -> None:
    """Refuse a folder that is not ours to write in.

    Raises:
        UserError: it holds something that is not a report, or is a file.
    """
    try:
        names = {path.name for path in out.iterdir()} if out.exists() else set()
    except OSError as error:
        raise UserError(
            f"--out {out} is not a folder that can be read ({error.strerror}); choose another."
        ) from None
    if names - {".lock"} and _written(out) is None:
        raise UserError(f"--out {out} is not empty and holds no report; choose another folder.")


def _looks(out: Path) -> dict[str, list[str]]:
    """Numbers of trials with which earlier reports in this folder judged each comparison."""
    try:
        found = json.loads((out / LIST).read_text(encoding="utf-8"))["looks"]
        return {str(name): list(map(str, trials)) for name, trials in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _written(out: Path) -> list[str] | None:
    """What an older report wrote, relative to it; None if there is none."""
    try:
        contents = json.loads((out / LIST).read_text(encoding="utf-8"))
        if contents["kind"] != KIND:
            return None
        paths = [Path(name) for name in contents["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    # Whatever the list says, nothing outside the report is taken for a part of it.
    return [str(p) for p in paths if len(p.parts) == 2 and p.parts[0] in FOLDERS]


def write(
    sections: list,
    found: list,
    problems: list[str],
    out: Path,
    looks: dict[str, list[str]] | None = None,
) -> Path:
    """All files of a report: each whole or not at all, the page last.

    Args:
        sections: `sections.Section` each.
        found: the `records.Record` that the sections' values point to.
        problems: a sentence each, for the top of the page.
        looks: looks from `comparisons.Rules`, saved for the next report in this folder.
    """
    from classification.report import page as report_page
    from classification.report import page_runs
    from robust_backbones.core.files import atomic, claimed

    drawn = [figure for section in sections for figure in section.figures]
    names = [Path(part.name).name for part in (*sections, *drawn)]
    assert names == [part.name for part in (*sections, *drawn)]  # they become files
    runs = page_runs.gather(found)
    contents, drawings = _figures(sections, "simulated" if runs.simulated else "")
    contents |= _tables(sections)
    page = report_page.render(sections, drawings, runs, problems, list(contents))
    with claimed(out):
        older = set(_written(out) or ())
        # First, so that what is left by a process that was killed can be told to be ours.
        known = {"kind": KIND, "files": sorted(older | set(contents)), "looks": looks or {}}
        listed = json.dumps(known, indent=1)
        contents = {LIST: listed.encode(), **contents, PAGE: page.encode()}
        for name, data in contents.items():
            with atomic(out / name) as temporary:
                temporary.write_bytes(data)
        for name in older - set(contents):
            (out / name).unlink(missing_ok=True)
    return out / PAGE


def _figures(sections: list, across: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Their files, and what the page has of them."""
    from classification.report import figures

    files, drawings = {}, {}
    for figure in (figure for section in sections for figure in section.figures):
        svg, png = figures.draw(figure, across)
        files[f"figures/{figure.name}.svg"] = svg.encode()
        files[f"figures/{figure.name}.png"] = png
        drawings[figure.name] = figures.inline(svg, figure.title)
    return files, drawings


def _tables(sections: list) -> dict[str, bytes]:
    from classification.report import tables

    return {
        f"tables/{section.name}.{ending}": form(section).encode()
        for section in sections
        if section.rows
        for ending, form in tables.FORMS.items()
    }


if __name__ == "__main__":
    main()
