"""Save the results of the study on photographs, and write docs/results/photographs.md from them.

python benchmarks/photographs/page.py

Results of finished runs are copied from output/photographs to benchmarks/photographs/results. The
page is made from the saved results and the figures in docs/results/photographs. Pictures of cells
need the detectors in output/photographs.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import jinja2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from classification.report import records  # noqa: E402
from classification.report.records import Record  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.errors import user_errors  # noqa: E402
from robust_backbones.core.files import read_json  # noqa: E402
from robust_backbones.core.picture_grid import arrange  # noqa: E402

OUTPUT = ROOT / "output/photographs"
HERE = ROOT / "benchmarks/photographs"
RESULTS = HERE / "results"
PAGE = ROOT / "docs/results/photographs.md"
FIGURES = PAGE.with_suffix("")
NETWORKS = ("standard", "eps 0.5", "eps 1")  # labels of the networks in the comparisons
COMPARISONS = {  # folder -> heading
    "fixed-feature": "Classification, fixed features",
    "full-network": "Classification, all layers",
    "blood-cells": "Detection of blood cells",
}
SAVED = ("result.json", "run.json", "per_image.csv")  # files of a run
FOREST = "figures/forest.svg"  # forest plot in the folder of a report
PICTURES = 3
NOT_RUN = "not run"


def collect(output: Path, results: Path, figures: Path) -> None:
    """Copy the results of finished runs, and contents and forest plots of the reports.

    Args:
        output: folder of the study.
        results: folder for the results.
        figures: folder for the forest plots.
    """
    for name in ("pretrained", *(f"compare/{each}/runs" for each in COMPARISONS)):
        for result in sorted((output / name).rglob("result.json")):
            target = results / result.parent.relative_to(output)
            target.mkdir(parents=True, exist_ok=True)
            for file in SAVED:
                if (result.parent / file).exists():
                    shutil.copyfile(result.parent / file, target / file)
    for name in COMPARISONS:
        report = output / "compare" / name / "report"
        if (report / "report.json").exists():
            shutil.copyfile(report / "report.json", results / "compare" / name / "report.json")
        if (report / FOREST).exists():
            figures.mkdir(exist_ok=True)
            shutil.copyfile(report / FOREST, forest(figures, name))


def forest(figures: Path, name: str) -> Path:
    """Return the path of the forest plot of a comparison."""
    return figures / f"{name}.svg"


def draw_cells(output: Path, found: list[Record], figures: Path) -> None:
    """Draw the truth and the detections of a standard and a robust detector side by side.

    Args:
        output: folder of the study, which contains the detectors.
        found: results of the detectors.
        figures: folder for the pictures and the license of the photographs.
    """
    first = {of(record): record for record in reversed(found) if record.seed == 0}
    runs = [first[name].path.parent for name in (NETWORKS[0], NETWORKS[-1]) if name in first]
    folders = [output / folder.relative_to(RESULTS) for folder in runs]
    weights = [str(folder / "model_final.pth") for folder in folders]
    if len(weights) < 2 or not all(map(Path.exists, map(Path, weights))):
        return
    shown = output / "look"
    shutil.rmtree(shown, ignore_errors=True)
    command = [sys.executable, str(ROOT / "tools/visualize.py"), "--output", str(shown)]
    command += ["--config", str(folders[0] / "config.yaml"), "--compare", weights[1]]
    command += ["--images", str(PICTURES), "MODEL.WEIGHTS", weights[0]]
    subprocess.run(command, check=True, cwd=ROOT)
    files = sorted((shown / "pictures").glob("*.png"))
    rows = [files[start : start + 3] for start in range(0, len(files), 3)]
    pixels = [[np.asarray(Image.open(file).convert("RGB")) for file in row] for row in rows]
    titles = ["annotation", "detector on the standard network", f"on the network of {NETWORKS[-1]}"]
    figures.mkdir(exist_ok=True)
    image = Image.fromarray(arrange(pixels, titles))
    image.thumbnail((1500, 1500))
    image.save(figures / "cells.jpg", quality=85)
    shutil.copyfile(output / "data/BCCD/LICENSE", figures / "BCCD_LICENSE.txt")


def of(record: Record) -> str:
    """Return the label of the network of a run."""
    return str(record.labels.get("weights", ""))


def spread(values: list[float]) -> str:
    """Return mean, standard deviation and number of trials, such as `67.8 ± 1.2 (3)`."""
    if not values:
        return NOT_RUN
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation} ({len(values)})"


def pretraining(found: list[Record]) -> list[list[str]]:
    """Return the rows of the table of networks: eps, clean and robust accuracy, hours.

    The radius of the evaluation is part of the robust accuracy, because it is not the same for all.
    """
    rows: dict[str, list[str]] = {}
    for record in found:
        radius = record.settings["evaluation"]["eps"]
        rows[f"{record.eps:g}"] = [
            f"{record.metrics['clean_top1']:.1f}",
            f"{record.metrics['robust_top1']:.1f} ({radius:g})",
            f"{record.seconds / 3600:.1f}",
        ]
    return [[eps, *rows.get(eps, [NOT_RUN] * 3)] for eps in ("0", "0.5", "1")]


def transfer(found: Iterable[Record]) -> list[list[str]]:
    """Return the rows of the table of tasks: mode, task, accuracy of each network."""
    cells = defaultdict(list)
    for record in found:
        cells[record.mode, record.labels.get("task"), of(record)] += record.accuracies
    return [
        [mode, task, *(spread(cells[mode, task, network]) for network in NETWORKS)]
        for mode in ("fixed-feature", "full-network")
        for task in ("cifar", "coco", "voc")
    ]


def detection(found: list[Record]) -> list[list[str]]:
    """Return the rows of the table of detectors: network, learning rate, AP, AP50, AP75."""
    rows = []
    for network in NETWORKS:
        own = [record for record in found if of(record) == network]
        scores = [next(iter(record.metrics.values()))["bbox"] for record in own]
        rates = {f"{record.settings['SOLVER']['BASE_LR']:g}" for record in own}
        columns = ([score[key] for score in scores] for key in ("AP", "AP50", "AP75"))
        rows.append([network, ", ".join(sorted(rates)) or NOT_RUN, *map(spread, columns)])
    return rows


def held_out(record: Record) -> bool:
    """Return whether a detector was trained to choose the learning rate."""
    return bool(record.settings["DATASETS"].get("HELD_OUT"))


def read_reports(results: Path) -> dict[str, list[dict]]:
    """Return the answers of each comparison by its heading; no answers if it is not finished."""
    found: dict[str, list[dict]] = {}
    for name, heading in COMPARISONS.items():
        report = results / "compare" / name / "report.json"
        found[heading] = read_json(report)["answers"] if report.exists() else []
    return found


def page(results: Path, figures: Path) -> str:
    """Return the page, as Markdown.

    Args:
        results: folder of the saved results.
        figures: folder of the figures, next to the page.
    """
    found = {
        name: records.read([results / name])[0] if (results / name).is_dir() else []
        for name in ("pretrained", *(f"compare/{each}" for each in COMPARISONS))
    }
    classifiers = [*found["compare/fixed-feature"], *found["compare/full-network"]]
    detectors = found["compare/blood-cells"]
    reports = read_reports(results)
    comparisons = [
        {
            "heading": heading,
            "sentences": [answer["text"] for answer in reports[heading]],
            "forest": forest(figures, name).name if forest(figures, name).exists() else "",
            "runs": len(found[f"compare/{name}"]),
            "hours": f"{sum(record.seconds for record in found[f'compare/{name}']) / 3600:.1f}",
        }
        for name, heading in COMPARISONS.items()
    ]
    license_file = figures / "BCCD_LICENSE.txt"
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = (HERE / "page.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        networks=NETWORKS,
        comparisons=comparisons,
        pretraining=pretraining(found["pretrained"]),
        transfer=transfer(classifiers),
        detection=detection([record for record in detectors if not held_out(record)]),
        candidates=sum(map(held_out, detectors)),
        hardware=sorted({hardware(record) for records in found.values() for record in records}),
        commands=(HERE / "run.sh").read_text(encoding="utf-8").strip(),
        license=license_file.read_text(encoding="utf-8").strip() if license_file.exists() else "",
    )


def hardware(record: Record) -> str:
    """Return the hardware and the PyTorch version of a run in words."""
    used = read_json(record.path)["hardware"]
    threads = f"{used['threads']} thread{'s' * (used['threads'] > 1)}"
    return f"{', '.join(used['gpus']) or 'CPU'}, {threads}, torch {used['torch']}"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return Parser(description=__doc__).parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Save the results, draw the pictures, and write the page."""
    with user_errors():
        parse(argv)
        collect(OUTPUT, RESULTS, FIGURES)
        cells = RESULTS / "compare/blood-cells"
        if cells.is_dir():
            detectors = records.read([cells])[0]
            draw_cells(OUTPUT, [each for each in detectors if not held_out(each)], FIGURES)
        PAGE.write_text(page(RESULTS, FIGURES), encoding="utf-8")
        print(PAGE)


if __name__ == "__main__":
    main()
