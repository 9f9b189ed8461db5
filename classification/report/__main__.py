"""Create tables, figures and a page from results, next to the paper's numbers.

Examples:
  robust-backbones report output/transfer --output output/report
  robust-backbones report output/studies/table1 --output output/report \\
      --study configs/studies/table1.yaml
  robust-backbones report s3://bucket/study --output output/report

Writes DIR/index.html, a page that works offline, tables (CSV, Markdown, LaTeX) to DIR/tables, and
figures (SVG, PNG) to DIR/figures. A new report replaces the files of an older report in DIR, but no
other files.

Exit codes: 0 success, 2 invalid input.
"""

from pathlib import Path

from classification.report import folder, records
from classification.study.storage import Store, is_url
from robust_backbones.core import cli
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and write the report."""
    args = _parser().parse_args(argv)
    with user_errors():
        folder.check(args.output)
        found, problems = records.read(map(_local, args.results))
        if not found:
            raise UserError(
                f"no results in {', '.join(args.results)}. Give folders that contain "
                f"result.json files. {' '.join(problems[:3])}".rstrip()
            )
        # Imported here because matplotlib, NumPy and SciPy would delay --help.
        from classification.report.run import run

        run(found, problems, args.output, args.study, args.margin)


def _local(results: str) -> Path:
    """Return the local folder of results, into which results from object storage are copied."""
    if not is_url(results):
        return Path(results)
    store = Store(results)
    store.fetch_results()
    return store.folder


def _parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument(
        "results",
        type=cli.location,
        nargs="+",
        metavar="RESULTS",
        help="folders, searched at any depth, result.json files, or URLs of folders in object "
        "storage, such as s3://bucket/study",
    )
    p.add_argument(
        "--output",
        type=cli.path,
        required=True,
        metavar="DIR",
        help="folder for the report: new, empty, or an older report",
    )
    p.add_argument(
        "--study",
        type=cli.path,
        metavar="FILE",
        help="study file; adds a table of its finished and missing runs",
    )
    p.add_argument(
        "--margin",
        type=cli.amount,
        metavar="POINTS",
        help="largest difference in accuracy or AP that counts as no difference, percentage "
        "points (default: 1)",
    )
    return p


if __name__ == "__main__":
    main()
