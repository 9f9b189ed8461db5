"""Convert runs to compact JSON, so that the page of a report can contain thousands of runs."""

import base64
import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classification.report.records import Record
from robust_backbones.core.results import flatten

MAX_PICTURE_BYTES = 6_000_000  # largest total size of the pictures in the page
MAX_RECALLS = 600_000  # largest number of per-class recalls in the page
# Names of the embedded pictures: training curves, accuracy against eps, and Figure 1.
_PICTURES = ("curves.png", "curve.png", "trial*/*/curves.png", "figure.png")
_SKIPPED = {"candidates"}  # entries that are too long for the page: a trial may have 45


@dataclass(frozen=True)
class PageRuns:
    """Runs in the form that the page's script reads.

    Attributes:
        rows: JSON object of each record, in the order of the records; see `_row`.
        common: settings that are the same in all runs.
        classes: class lists. Each one has a `[class name, number of test images]` per class. A row
            contains the index of its class list.
        simulated: number of simulated runs.
    """

    rows: list[dict]
    common: dict
    classes: list[list]
    simulated: int

    def json(self) -> dict:
        """Return the JSON object that the page's script reads."""
        return {"rows": self.rows, "common": self.common, "classes": self.classes}


def collect_runs(records: list[Record]) -> PageRuns:
    """Convert the records to rows, and add the recalls and pictures in their folders."""
    settings = [flatten(rounded(record.settings)) for record in records]
    common = _common(settings)
    classes: dict[tuple, int] = {}
    left = {"pictures": MAX_PICTURE_BYTES, "recalls": MAX_RECALLS}
    rows = []
    for record, chosen in zip(records, settings, strict=True):
        row = _row(record, {k: v for k, v in chosen.items() if k not in common})
        row |= _per_class(record.path.parent, classes, left) | _pictures(record.path.parent, left)
        rows.append(row)
    known = [list(map(list, key)) for key in classes]
    return PageRuns(rows, common, known, sum(record.simulated for record in records))


def _row(record: Record, settings: dict) -> dict:
    accuracies = record.accuracies
    mean = sum(accuracies) / len(accuracies) if accuracies else math.nan
    return {
        "path": str(record.path),
        "kind": record.kind,
        "dataset": record.dataset,
        "mode": record.mode,
        "protocol": record.protocol,
        "arch": record.arch,
        "eps": rounded(record.eps),
        "metric": record.metric,
        "trials": len(accuracies),
        "mean": round(mean, 4) if math.isfinite(mean) else None,
        "simulated": record.simulated,
        "settings": settings,
        "metrics": flatten(rounded(record.metrics)),
        "facts": {
            "weights": record.weights,
            "weights_sha256": record.weights_sha256,
            "pretrained_on": record.pretrained_on or None,
            "code_version": record.code_version,
            "seconds": rounded(record.seconds),
            "finished": record.finished,
            **_splits(record),
        },
    }


def _splits(record: Record) -> dict[str, str]:
    """Return how the images of each split were selected, where the result states it."""
    return {
        f"{name} images": part["split"]
        for name, part in record.data.items()
        if isinstance(part.get("split"), str)
    }


def rounded(node: Any) -> Any:
    """Convert a value to JSON types, with rounded numbers and without lists of candidates.

    Numbers are rounded to four decimals. Numbers below 0.1 are rounded to six significant digits.
    """
    if isinstance(node, dict):
        return {str(k): rounded(v) for k, v in node.items() if k not in _SKIPPED}
    if isinstance(node, (list, tuple)):
        return [rounded(value) for value in node]
    if isinstance(node, float):
        if not math.isfinite(node):  # JSON has no NaN or infinity
            return str(node)
        return round(node, 4) if abs(node) >= 0.1 else float(f"{node:.6g}")
    return node if isinstance(node, (str, int, bool, type(None))) else str(node)


def _common(settings: list[dict]) -> dict:
    """Return the settings that are equal in all runs. The result is empty for a single run."""
    if len(settings) < 2:
        return {}
    return {
        key: value
        for key, value in settings[0].items()
        if all(key in other and other[key] == value for other in settings)
    }


def _per_class(folder: Path, known: dict, left: dict) -> dict:
    """Read the recalls of a run.

    Args:
        folder: folder of the run.
        known: map from class lists to their indices. The run's class list is added to it.
        left: remaining space in the page. It is reduced by the run's recalls.

    Returns:
        A dictionary with two entries. `classes` is the index of the class list. `recalls` is in
        percent, and None for a class without images. If the page has no space left, the dictionary
        contains only `skipped_classes`, the file's name. It is empty if the run has no valid file.
    """
    try:
        with open(folder / "per_class.csv", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        if not all(math.isfinite(float(line["recall_percent"] or 0)) for line in lines):
            return {}
        names = tuple((line["class"], int(line["images"])) for line in lines)
        recalls = [
            round(float(line["recall_percent"]), 1) if line["recall_percent"] else None
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}  # the file is missing, or another program wrote it
    left["recalls"] -= len(names)
    if left["recalls"] < 0:
        return {"skipped_classes": "per_class.csv"}
    return {"classes": known.setdefault(names, len(known)), "recalls": recalls}


def _pictures(folder: Path, left: dict) -> dict:
    """Read the pictures of a run.

    Args:
        folder: folder of the run.
        left: remaining space in the page. It is reduced by the run's pictures.

    Returns:
        A dictionary with two entries, without the empty ones. `pictures` is a list of
        `[file, data URL]`. `skipped_pictures` is a list of the files that do not fit into the page.
    """
    paths = [path for name in _PICTURES for path in sorted(folder.glob(name))]
    # Skip the training runs that only chose hyperparameters.
    paths = [path for path in paths if not path.parent.name.startswith("choosing")]
    pictures, skipped = [], []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        left["pictures"] -= (size := path.stat().st_size)
        if left["pictures"] < 0:
            left["pictures"] += size
            skipped.append(name)
        elif (contents := path.read_bytes()).startswith(b"\x89PNG"):
            data = "data:image/png;base64," + base64.b64encode(contents).decode()
            pictures.append([name, data])
    found = {"pictures": pictures, "skipped_pictures": skipped}
    return {key: value for key, value in found.items() if value}
