"""Conditions under which a transfer run tests its networks, and calibration on the images.

Every result has the clean test images. A run may also test under attack, on corrupted images, and
on images with a distribution shift. docs/reference/formats.md describes the entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

KINDS = ("attack", "corruptions", "shift")
# Entries of a condition that are numbers of a run. All other entries describe the condition.
_MEASURED = {"accuracy", "sd", "min", "max", "interval", "trials", "by_corruption", "calibration"}
# Names of the calibration scores in a report, and where result.json has them.
SCORES = {
    "nll": ("nll",),
    "nll_scaled": ("scaled", "nll"),
    "brier": ("brier",),
    "brier_scaled": ("scaled", "brier"),
    "ece": ("ece",),
    "ece_scaled": ("scaled", "ece"),
    "accuracy_at_80": ("coverage", "80"),
}


@dataclass(frozen=True)
class Score:
    """Calibration score of a run.

    Attributes:
        trials: score of each trial.
        low, high: ends of the 95 % interval over images.
    """

    trials: tuple[float, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Condition:
    """Test images, and what was done to them.

    Attributes:
        name: name of the condition; empty: clean test images.
        kind: one of `KINDS`; empty: clean test images.
        accuracies: accuracy of each trial in percent; empty for clean test images, whose accuracies
            are in the record.
        file: path of the table of images, relative to the folder of the result.
        versions: number of versions of each image.
        images: number of images; None: all test images.
        facts: description of the condition as text. Conditions of the same name may differ in it.
        calibration: calibration scores, with the names in `SCORES`; empty: not measured.
    """

    name: str = ""
    kind: str = ""
    accuracies: tuple[float, ...] = ()
    file: str = "per_image.csv"
    versions: int = 1
    images: int | None = None
    facts: str = ""
    calibration: Mapping[str, Score] = field(default_factory=dict)


CLEAN = Condition()


def read_conditions(metrics: dict) -> tuple[Condition, ...]:
    """Read the conditions of a transfer result; empty if it has only the clean test images.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: an entry is invalid.
    """
    found = []
    for row in metrics.get("conditions") or ():
        if row["kind"] not in KINDS or len(row["trials"]) != len(metrics["trials"]):
            raise ValueError(f"invalid condition {row['name']!r}")
        if not row["name"] or row["versions"] < 1 or ".." in (file := PurePath(row["file"])).parts:
            raise ValueError(f"invalid condition {row['name']!r}")
        facts = {name: fact for name, fact in row.items() if name not in _MEASURED}
        found.append(
            Condition(
                str(row["name"]),
                row["kind"],
                tuple(map(float, row["trials"])),
                str(file),
                int(row["versions"]),
                int(row["images"]),
                json.dumps(facts, sort_keys=True),
                read_calibration(row.get("calibration"), len(metrics["trials"])),
            )
        )
    return tuple(found)


def read_calibration(entry: dict | None, trials: int) -> dict[str, Score]:
    """Read the calibration scores of a result or of a condition; empty if not measured.

    Args:
        entry: entry `calibration`; None: missing.
        trials: number of trials.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: an entry is invalid.
    """
    found = {}
    for name, path in SCORES.items():
        part: dict | None = entry
        for key in path:
            part = part[key] if part else None
        if part:
            if len(part["trials"]) != trials:
                raise ValueError(f"calibration of {len(part['trials'])} trials, expected {trials}")
            low, high = part["interval"]
            found[name] = Score(tuple(map(float, part["trials"])), float(low), float(high))
    return found
