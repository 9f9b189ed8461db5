"""Save the results of the study of what transfers, and write docs/results/what_transfers.md.

python benchmarks/what_transfers/page.py

Results of finished runs are copied from output/what_transfers to benchmarks/what_transfers/results.
The page contains tables and figures of the report on these results.
"""

import argparse
import csv
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import jinja2  # noqa: E402

from classification.report import __main__ as report  # noqa: E402
from classification.report import records  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.errors import user_errors  # noqa: E402
from robust_backbones.core.files import read_json  # noqa: E402

OUTPUT = ROOT / "output/what_transfers"
HERE = ROOT / "benchmarks/what_transfers"
RESULTS = HERE / "results"
PAGE = ROOT / "docs/results/what_transfers.md"
FIGURES = PAGE.with_suffix("")
STUDIES = ("pretrained", "runs", "autoattack")
SAVED = ("result.json", "run.json", "per_image.csv", "conditions/*.csv")  # files of a run
DRAWN = ("conditions-fixed-feature", "conditions-full-network", "few-images-fixed-feature")
# Columns of the report's tables that are equal in all rows, or that the page does not need.
OMITTED = {"task", "architecture", "best eps", "p, corrected", "would tell"}


def collect(output: Path, results: Path) -> None:
    """Copy the results of finished runs."""
    for name in STUDIES:
        for result in sorted((output / name).rglob("result.json")):
            for file in (file for pattern in SAVED for file in result.parent.glob(pattern)):
                target = results / file.relative_to(output)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def table(file: Path) -> list[str]:
    """Return the lines of a Markdown table of the report, without the columns in `OMITTED`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    kept = [index for index, name in enumerate(rows[0]) if name not in OMITTED]
    return [f"| {' | '.join(row[index] for index in kept)} |" for row in rows]


def pretraining(results: Path) -> list[list[str]]:
    """Return the rows of the table of networks: eps, clean and robust accuracy, hours."""
    return [
        [
            f"{record.eps:g}",
            f"{record.metrics['clean_top1']:.1f}",
            f"{record.metrics['robust_top1']:.1f} ({record.settings['evaluation']['eps']:g})",
            f"{record.seconds / 3600:.1f}",
        ]
        for record in records.read([results / "pretrained"])[0]
    ]


def autoattack(results: Path) -> list[list[str]]:
    """Return the rows of the table of AutoAttack: mode, eps, images, accuracies in percent.

    The accuracies are under PGD and under AutoAttack, on the same images.
    """
    rows = []
    for record in records.read([results / "autoattack"])[0]:
        pgd, auto = (
            _correct(record.path.parent / condition["file"])
            for family in ("pgd", "autoattack")
            for condition in record.metrics["conditions"]
            if condition["attack"]["family"] == family
        )
        shares = [100 * fmean(found[index] for index in auto) for found in (pgd, auto)]
        shown = (f"{share:.0f}" for share in shares)
        rows.append([record.mode, f"{record.eps:g}", str(len(auto)), *shown])
    return sorted(rows)


def _correct(file: Path) -> dict[str, int]:
    """Return whether the first trial classifies each image correctly, by the image's index."""
    with open(file, newline="", encoding="utf-8") as lines:
        return {row["index"]: int(row["right0"]) for row in csv.DictReader(lines)}


def _shifted(results: Path) -> int:
    """Return the number of images of the distribution shift."""
    found = (
        condition["images"]
        for record in records.read([results / "runs"])[0]
        for condition in record.metrics.get("conditions", [])
        if condition["kind"] == "shift"
    )
    return next(found)


def page(results: Path, figures: Path) -> str:
    """Return the page as Markdown, and write its figures.

    Args:
        results: folder of the saved results.
        figures: folder for the figures, next to the page.
    """
    with tempfile.TemporaryDirectory() as folder:
        report.main([str(results / "runs"), "--output", folder])
        made = Path(folder)
        answers = read_json(made / "report.json")["answers"]
        names = ("conditions", "calibration", "few-images")
        tables = {name.replace("-", "_"): table(made / f"tables/{name}.md") for name in names}
        figures.mkdir(exist_ok=True)
        for name in DRAWN:
            shutil.copyfile(made / f"figures/{name}.svg", figures / f"{name}.svg")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = (HERE / "page.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        answers=[(answer["question"].partition(" (")[0], answer["text"]) for answer in answers],
        tables=tables,
        pretraining=pretraining(results),
        autoattack=autoattack(results),
        shifted=_shifted(results),
        hours=f"{sum(r.seconds for r in records.read([results / 'runs'])[0]) / 3600:.1f}",
        commands=(HERE / "run.sh").read_text(encoding="utf-8").strip(),
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return Parser(description=__doc__).parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Save the results, and write the page and its figures."""
    with user_errors():
        parse(argv)
        collect(OUTPUT, RESULTS)
        PAGE.write_text(page(RESULTS, FIGURES), encoding="utf-8")
        print(PAGE)


if __name__ == "__main__":
    main()
