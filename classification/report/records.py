"""Result files, read: one `Record` each, and the trials of a configuration put together.

Imports no torch: a report of thousands of runs is to come in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from classification.report.result_kinds import READERS
from robust_backbones.core.errors import UserError

RESULT, STUDY = "result.json", "run.json"

# Settings that tell trials and places apart, not configurations. "source" describes the network,
# which its digest identifies; a newer version may describe it by more fields.
_NOT_CHOSEN = {"seed", "SEED", "trials", "weights", "save_classifier", "OUTPUT_DIR", "source"}

_NONE, _NUMBER = type(None), (int, float)
_TYPES: dict[str, Any] = {  # of the fields that are not text
    "path": Path,
    "downscale": (int, _NONE),
    "eps": (*_NUMBER, _NONE),
    "accuracies": tuple,
    "seeds": tuple,
    "seed": int,
    "settings": dict,
    "metrics": dict,
    "data": dict,
    "weights_sha256": (str, _NONE),
    "seconds": _NUMBER,
    "labels": dict,
    "warnings": list,
    "simulated": bool,
    "assumed_standard": bool,
}


@dataclass(frozen=True)
class Record:
    """One result file. What a kind of run does not have is empty.

    Attributes:
        path: of the file.
        kind: a key of `result_kinds.READERS`.
        dataset: the task; of a detector its test set.
        mode: `"fixed-feature"`, `"full-network"`.
        protocol: its name, such as `"clean"` or `"paper+batchnorm=frozen"`.
        downscale: pixels that the images were taken down to, or None.
        arch: of the network.
        constraint, eps: of the training of the network that transfers (of a pretraining: of
            itself), pixels in [0, 1]: of `"l2"` the norm over an image. eps 0: standard training,
            None: nobody knows.
        weights: what the user called the network.
        pretrained_on: data set that the network comes from.
        accuracies: of the trials, percent, in the metric of the task.
        seeds: of the trials.
        metric: what `accuracies` are in.
        metrics, settings, data, warnings: as in the file.
        labels: what a study calls it, axis -> value.
        simulated: no run was made.
        assumed_standard: nothing says how the network was trained, so it counts as a standard one.
    """

    path: Path
    kind: str
    dataset: str = ""
    mode: str = ""
    protocol: str = ""
    downscale: int | None = None
    arch: str = ""
    constraint: str = ""
    eps: float | None = None
    weights: str = ""
    pretrained_on: str = ""
    accuracies: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    metric: str = ""
    seed: int = 0
    settings: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    weights_sha256: str | None = None
    code_version: str = ""
    seconds: float = 0.0
    finished: str = ""
    labels: dict = field(default_factory=dict)
    simulated: bool = False
    assumed_standard: bool = False
    warnings: list = field(default_factory=list)

    @cached_property
    def configuration(self) -> str:
        """Equal for trials of one configuration: a digest of all that was chosen but the seed."""
        chosen = {k: v for k, v in self.settings.items() if k not in _NOT_CHOSEN}
        if isinstance(model := chosen.get("MODEL"), dict):  # of a detector
            chosen["MODEL"] = {k: v for k, v in model.items() if k != "WEIGHTS"}
        network = self.weights_sha256 or self.weights
        parts = [self.kind, network, chosen, self.data, self.simulated]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Merged:
    """All trials of one configuration, each seed once.

    Attributes:
        first: the record that stands for them.
        places: of its records in the list that was merged.
        accuracies, seeds: of the trials, in the order of the seeds.
        sources: for each trial, its record and its number in there.
        contradictions: seeds that were found more than once, with different accuracies.
    """

    first: Record
    places: tuple[int, ...]
    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    sources: tuple[tuple[Record, int], ...]
    contradictions: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Percent."""
        return sum(self.accuracies) / len(self.accuracies)


def read(folders: Iterable[Path | str]) -> tuple[list[Record], list[str]]:
    """All results in folders, however deep, in the order of their paths.

    Args:
        folders: folders, or result files themselves.

    Returns:
        The records; and a sentence for each file that cannot be used. Results of other kinds than
        `result_kinds` has are passed over without one.

    Raises:
        UserError: a folder does not exist.
    """
    found, problems = [], []
    for path in _paths(folders):
        try:
            record = _read(path)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            problems.append(f"{path} is not a result that can be read ({_words(error)}).")
            continue
        if record:
            found.append(record)
    return found, problems


def merged(records: list[Record]) -> list[Merged]:
    """Records with accuracies, those of one configuration together, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        if record.accuracies:
            groups.setdefault(record.configuration, []).append(place)
    return [_merge(records, places) for places in groups.values()]


def _merge(records: list[Record], places: list[int]) -> Merged:
    trials: dict[int, tuple[float, tuple[Record, int]]] = {}
    contradictions = set()
    for record in (records[place] for place in places):
        for k, (seed, value) in enumerate(zip(record.seeds, record.accuracies, strict=True)):
            if trials.setdefault(seed, (value, (record, k)))[0] != value:
                contradictions.add(seed)
    order = sorted(trials)
    return Merged(
        records[places[0]],
        tuple(places),
        tuple(trials[s][0] for s in order),
        tuple(order),
        tuple(trials[s][1] for s in order),
        tuple(sorted(contradictions)),
    )


def _paths(folders: Iterable[Path | str]) -> list[Path]:
    paths = {}
    for folder in map(Path, folders):
        if folder.is_file():
            paths[folder.resolve()] = folder
            continue
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; give folders with results, or result files.")
        for above, _, names in os.walk(folder):
            if RESULT in names:
                path = Path(above, RESULT)
                paths.setdefault(path.resolve(), path)
    return sorted(paths.values())


def _read(path: Path) -> Record | None:
    """None of a kind that no exhibit is about."""
    contents = json.loads(path.read_text(encoding="utf-8"))
    if (schema := contents["schema"]) != 1:
        raise ValueError(f"schema {schema}, known is 1")
    if (kind := contents["kind"]) not in READERS:
        return None
    settings = contents["settings"]
    usual = {
        "path": path,
        "kind": kind,
        "dataset": settings.get("dataset", ""),
        "arch": settings.get("arch") or "",
        "weights": str(settings.get("weights") or ""),
        "seed": contents["seed"],
        "settings": settings,
        "metrics": contents["metrics"],
        "data": contents["data"],
        "weights_sha256": contents["weights_sha256"],
        "code_version": contents["code_version"],
        "seconds": contents["seconds"],
        "finished": contents["finished"],
        "labels": _labels(path),
        "warnings": contents.get("warnings") or [],
        "simulated": settings.get("simulated") is True,
    }
    found = usual | READERS[kind](contents, usual)
    for name, value in found.items():
        if not isinstance(value, _TYPES.get(name, str)):
            raise ValueError(f"{name} is {value!r}")
    if not all(type(seed) is int for seed in found.get("seeds", ())):
        raise ValueError(f"seeds are {found['seeds']}")
    if not all(map(_described, found["data"].values())):
        raise ValueError("data are not described")
    return Record(**found)


def _described(part: object) -> bool:
    """Whether the data of a split are named by plain values, which can be compared."""
    known = ("name", "images", "fingerprint")
    plain = (str, int, float, _NONE)
    return isinstance(part, dict) and all(isinstance(part.get(key), plain) for key in known)


def _labels(path: Path) -> dict:
    """What the study program noted beside a result; a file of another's making is passed over."""
    try:
        labels = json.loads((path.parent / STUDY).read_text(encoding="utf-8"))["labels"]
        return dict(labels)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _words(error: Exception) -> str:
    missing = isinstance(error, KeyError)
    return f"without {error}" if missing else str(error).split("\n")[0] or type(error).__name__
