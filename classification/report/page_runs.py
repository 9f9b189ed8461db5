"""The runs behind a report, small enough that thousands of them fit into one page."""

import base64
import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classification.report.records import Record

# Bounds of what goes into the page; what is beyond them stays in the folders of the runs.
PICTURES = 6_000_000  # bytes, all together
CLASSES = 600_000  # recalls, all together
# Curves of trainings, accuracy against eps, what networks see (Figure 1).
_SHOWN = ("curves.png", "curve.png", "trial*/*/curves.png", "figure.png")
_LEFT_OUT = {"candidates"}  # of a trial: up to 45 numbers each


@dataclass(frozen=True)
class Runs:
    """Attributes:
    rows: one for each record, in their order; plain JSON values. See `_row`.
    common: settings that are the same in all runs.
    classes: lists of `[class name, test images]`, which rows name by their place.
    simulated: how many runs were never made.
    """

    rows: list[dict]
    common: dict
    classes: list[list]
    simulated: int

    def json(self) -> dict:
        """What the page's script reads."""
        return {"rows": self.rows, "common": self.common, "classes": self.classes}


def gather(records: list[Record]) -> Runs:
    """Records (see `records.Record`) with what lies beside their files."""
    settings = [flat(rounded(record.settings)) for record in records]
    common = _common(settings)
    classes, left = {}, {"pictures": PICTURES, "classes": CLASSES}
    rows = []
    for record, chosen in zip(records, settings, strict=True):
        row = _row(record, {k: v for k, v in chosen.items() if k not in common})
        row |= _per_class(record.path.parent, classes, left) | _pictures(record.path.parent, left)
        rows.append(row)
    known = [list(map(list, key)) for key in classes]
    return Runs(rows, common, known, sum(record.simulated for record in records))


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
        "metrics": flat(rounded(record.metrics)),
        "facts": {
            "weights": record.weights,
            "weights_sha256": record.weights_sha256,
            "code_version": record.code_version,
            "seconds": rounded(record.seconds),
            "finished": record.finished,
        },
    }


def rounded(node: Any) -> Any:
    """Plain JSON values, numbers with four decimals (six digits if small), without what is long."""
    if isinstance(node, dict):
        return {str(k): rounded(v) for k, v in node.items() if k not in _LEFT_OUT}
    if isinstance(node, (list, tuple)):
        return [rounded(value) for value in node]
    if isinstance(node, float):
        if not math.isfinite(node):  # JSON has no such number
            return str(node)
        return round(node, 4) if abs(node) >= 0.1 else float(f"{node:.6g}")
    return node if isinstance(node, (str, int, bool, type(None))) else str(node)


def flat(node: dict, above: str = "") -> dict:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; lists stay."""
    found = {}
    for key, value in node.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _common(settings: list[dict]) -> dict:
    """What is in all of them, alike; nothing if there is only one."""
    if len(settings) < 2:
        return {}
    return {
        key: value
        for key, value in settings[0].items()
        if all(key in other and other[key] == value for other in settings)
    }


def _per_class(folder: Path, known: dict, left: dict) -> dict:
    """`classes`: place of the names; `recalls`: percent, None for a class without images."""
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
        return {}  # none, or not ours
    left["classes"] -= len(names)
    if left["classes"] < 0:
        return {"beside_classes": "per_class.csv"}
    return {"classes": known.setdefault(names, len(known)), "recalls": recalls}


def _pictures(folder: Path, left: dict) -> dict:
    """`pictures`: `[file, the picture as an address that holds all of it]` each; `beside_pictures`:
    files for which there is no room."""
    paths = [path for name in _SHOWN for path in sorted(folder.glob(name))]
    # Of a transfer: the trainings whose networks were tested, not those that chose.
    paths = [path for path in paths if not path.parent.name.startswith("choosing")]
    pictures, beside = [], []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        left["pictures"] -= (size := path.stat().st_size)
        if left["pictures"] < 0:
            left["pictures"] += size
            beside.append(name)
        elif (contents := path.read_bytes()).startswith(b"\x89PNG"):
            data = "data:image/png;base64," + base64.b64encode(contents).decode()
            pictures.append([name, data])
    found = {"pictures": pictures, "beside_pictures": beside}
    return {key: value for key, value in found.items() if value}
