"""Read result files into records, and merge the trials of a configuration.

This module does not import torch, so that a report of thousands of runs takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from classification.report.conditions import CLEAN, Condition
from classification.report.result_kinds import READERS
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import ASSUMED

RESULT, STUDY = "result.json", "run.json"

# Settings that are not part of a configuration. They differ between the trials of a configuration,
# or they are only names of files. "source" describes the network, which is already identified by
# the digest of its weights. "conditions" are tests of the finished networks, which do not change
# the clean accuracy.
_NOT_CONFIGURED = {"seed", "SEED", "trials", "weights", "save_classifier", "OUTPUT_DIR", "source"}
_NOT_CONFIGURED |= {"conditions"}

_NONE, _NUMBER = type(None), (int, float)
_TYPES: dict[str, Any] = {  # types of the record's fields that are not strings
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
    "condition": Condition,
    "conditions": tuple,
    "warnings": list,
    "simulated": bool,
    "assumed_standard": bool,
    "assumed_statistics": bool,
}


@dataclass(frozen=True)
class Record:
    """Contents of one result file. Fields that do not apply to a kind of run are empty.

    Attributes:
        path: path of the file.
        kind: kind of the run; the report shows the keys of `result_kinds.READERS`.
        dataset: target dataset, or the test set of a detector.
        mode: `"fixed-feature"` or `"full-network"`.
        protocol: name of the protocol, such as `"clean"` or `"paper+batchnorm=frozen"`.
        downscale: length of the shorter side to which images were reduced, in pixels; None: no
            reduction.
        arch: architecture of the network.
        constraint: norm of the attack during pretraining, `"l2"` or `"linf"`.
        eps: radius of this attack for images in [0, 1]; 0: standard training; None: unknown.
        weights: name or path of the weights, as the user gave it.
        pretrained_on: dataset that the network was pretrained on.
        accuracies: accuracy of each trial in percent, by the metric `metric`.
        seeds: seed of each trial.
        metric: name of the metric of `accuracies`.
        seed: seed of the run.
        metrics, settings, data, warnings: contents of the file.
        weights_sha256: SHA-256 of the weights; None: unknown.
        code_version: version of the code that produced the result.
        seconds: duration of the run in seconds.
        finished: end time of the run, as text.
        labels: map from axis to value, for runs of a study.
        condition: condition of `accuracies`. Records from files have the clean test images.
        conditions: further conditions, whose records `under` returns.
        simulated: whether the result was simulated.
        assumed_standard: whether the network is assumed to be standard, because its file does not
            record how it was trained.
        assumed_statistics: whether ImageNet's input statistics were assumed for the network.
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
    condition: Condition = CLEAN
    conditions: tuple[Condition, ...] = ()
    simulated: bool = False
    assumed_standard: bool = False
    assumed_statistics: bool = False
    warnings: list = field(default_factory=list)

    @cached_property
    def configuration(self) -> str:
        """Digest of everything that trials of the same configuration have in common."""
        chosen = {k: v for k, v in self.settings.items() if k not in _NOT_CONFIGURED}
        if isinstance(model := chosen.get("MODEL"), dict):  # configuration of a detector
            chosen["MODEL"] = {k: v for k, v in model.items() if k != "WEIGHTS"}
        network = self.weights_sha256 or self.weights
        parts = [self.kind, network, chosen, self.data, self.simulated, self.condition.facts]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def under(self, name: str) -> Record | None:
        """Return the record of a condition; None if the run was not tested under it."""
        for condition in self.conditions:
            if condition.name == name:
                accuracies = condition.accuracies
                return replace(self, condition=condition, conditions=(), accuracies=accuracies)
        return None


@dataclass(frozen=True)
class Merged:
    """All trials of one configuration, with one trial per seed.

    Attributes:
        first: first record of the configuration. All trials share its settings except the seed.
        indices: indices of the records in the list of all records.
        accuracies: accuracy of each trial, percent, in the order of the seeds.
        seeds: seed of each trial, ascending.
        sources: record of each trial, with the index of the trial in this record.
        contradictions: seeds whose results have different accuracies.
    """

    first: Record
    indices: tuple[int, ...]
    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    sources: tuple[tuple[Record, int], ...]
    contradictions: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Mean accuracy over the trials, in percent."""
        return sum(self.accuracies) / len(self.accuracies)


def read(folders: Iterable[Path | str]) -> tuple[list[Record], list[str]]:
    """Read all results in folders and their subfolders, in the order of their paths.

    Args:
        folders: folders with results, or result files.

    Returns:
        The records, and one sentence about each invalid file. Records of kinds without a reader in
        `result_kinds` have no accuracies.

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
            problems.append(f"{path} is not a valid result ({_words(error)}).")
            continue
        found.append(record)
    return found, problems


def read_results(*folders: str | Path) -> list[Record]:
    """Read all results of runs in folders and their subfolders.

    Invalid files are reported as warnings.

    Args:
        folders: folders of runs or studies, or single `result.json` files.

    Returns:
        One record per run, in the order of the paths. Their `metrics`, `settings` and `data` are
        described in docs/reference/formats.md.

    Raises:
        UserError: a folder does not exist.
    """
    found, problems = read(folders)
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return found


def merged(records: list[Record]) -> list[Merged]:
    """Merge the records of each configuration, in order of appearance.

    Records without accuracies are skipped.
    """
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        if record.accuracies:
            groups.setdefault(record.configuration, []).append(index)
    return [_merge(records, indices) for indices in groups.values()]


def under(records: Sequence[Record], name: str, run: Merged) -> Merged | None:
    """Return the trials of a run under a condition.

    Args:
        records: all records, to which the indices of the run refer.
        name: name of the condition. If the run has several conditions of this name, such as other
            images, the first is used.
        run: trials on the clean test images.

    Returns:
        The trials; None if no trial was tested under the condition.
    """
    found = {i: record for i in run.indices if (record := records[i].under(name))}
    first = next(iter(found.values()), None)
    if first is None:
        return None
    same = [i for i, record in found.items() if record.configuration == first.configuration]
    return _merge(found, same)


def _merge(records: Sequence[Record] | Mapping[int, Record], indices: list[int]) -> Merged:
    trials: dict[int, tuple[float, tuple[Record, int]]] = {}
    contradictions = set()
    for record in (records[index] for index in indices):
        for k, (seed, value) in enumerate(zip(record.seeds, record.accuracies, strict=True)):
            if trials.setdefault(seed, (value, (record, k)))[0] != value:
                contradictions.add(seed)
    order = sorted(trials)
    return Merged(
        records[indices[0]],
        tuple(indices),
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
            raise UserError(f"{folder} does not exist. Give folders with results, or result files.")
        for above, _, names in os.walk(folder):
            if RESULT in names:
                path = Path(above, RESULT)
                paths.setdefault(path.resolve(), path)
    return sorted(paths.values())


def _read(path: Path) -> Record:
    contents = json.loads(path.read_text(encoding="utf-8"))
    if (schema := contents["schema"]) != 1:
        raise ValueError(f"unsupported schema {schema}, expected 1")
    kind, settings = contents["kind"], contents["settings"]
    common = {
        "path": path,
        "kind": kind,
        "dataset": settings.get("dataset") or "",  # None: an image from noise
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
        "assumed_statistics": _assumed(settings),
    }
    found = common | (READERS[kind](contents, common) if kind in READERS else {})
    for name, value in found.items():
        if not isinstance(value, _TYPES.get(name, str)):
            raise ValueError(f"{name} is {value!r}")
    if not all(type(seed) is int for seed in found.get("seeds", ())):
        raise ValueError(f"seeds are {found['seeds']}")
    if not all(map(_described, found["data"].values())):
        raise ValueError("invalid description of the data")
    return Record(**found)


def _assumed(settings: dict) -> bool:
    """Return whether the input statistics of a network or of one of several were assumed."""
    found = settings.get("statistics") or {}
    several = [each for each in found.values() if isinstance(each, dict)]
    detector = (settings.get("MODEL") or {}).get("ROBUST") or {}
    sources = [each.get("source") for each in (found, *several)] + [detector.get("STATISTICS")]
    return ASSUMED in sources


def _described(part: object) -> bool:
    """Return whether a split's description has only plain values, which can be compared."""
    known = ("name", "images", "fingerprint")
    plain = (str, int, float, _NONE)
    return isinstance(part, dict) and all(isinstance(part.get(key), plain) for key in known)


def _labels(path: Path) -> dict:
    """Read the labels that `classification.study` saved next to a result; `{}` if missing."""
    try:
        labels = json.loads((path.parent / STUDY).read_text(encoding="utf-8"))["labels"]
        return dict(labels)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"missing key {error}"
    return str(error).split("\n")[0] or type(error).__name__
