"""Settings of a comparison, and the file that saves them in its output folder."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, read_json

SETTINGS, STUDY, REPORT = "compare.json", "study.yaml", "report"  # names in the output folder
RUNS, SHORT_RUN = "runs", "short-run"  # folders of the results in the output folder
CLASSIFICATION, DETECTION = "classification", "detection"  # kinds of data
SCHEMA = 1
# Options of the settings whose name differs from the field's.
_OPTIONS = {"data": "DATA", "root": "--data", "changes": "--set"}


@dataclass(frozen=True)
class CompareSettings:
    """Everything that the user chooses about a comparison, except where its runs are executed.

    Attributes:
        kind: kind of data, `CLASSIFICATION` or `DETECTION`.
        data: tasks as the user gave them: image folders, names of datasets, or `coco:...`,
            `voc:...`, `yolo:...` and `mask:...`.
        weights: networks to compare: paths, published names or URLs.
        trials: number of trials with different seeds, without the trials that `--more` adds.
        margin: largest difference that counts as no difference, in points; None: the report's.
        pretrained_on: pretraining dataset of networks whose files do not record it; empty: unknown.
        changes: options or config keys of all runs with their values, as pairs of strings.
        mode: mode of transfer; empty for detectors.
        root: folder of the known datasets (`--data`); None: `$ROBUST_BACKBONES_DATA`.
        image_size: height and width of the images in pixels; None: the weights'.
        limit, test_limit: number of training and test images to use; None: all images.
        shots: number of training images per class; None: all images.
        config: config file of the detectors; empty for classification.
        test: test data of the detectors, in the form of `data`.
        learning_rates: candidate learning rates of the detectors; empty: the defaults.
        iterations: number of training iterations of a detector; None: the config's.
    """

    kind: str
    data: tuple[str, ...]
    weights: tuple[str, ...]
    trials: int
    margin: float | None = None
    pretrained_on: str = ""
    changes: tuple[tuple[str, str], ...] = ()
    mode: str = ""
    root: str | None = None
    image_size: int | None = None
    limit: int | None = None
    test_limit: int | None = None
    shots: int | None = None
    config: str = ""
    test: str = ""
    learning_rates: tuple[float, ...] = ()
    iterations: int | None = None

    def difference(self, other: "CompareSettings") -> str:
        """Describe the first option whose value differs in `other`; empty if all are equal."""
        for each in fields(self):
            one, two = getattr(self, each.name), getattr(other, each.name)
            if _unordered(one) != _unordered(two):
                option = _OPTIONS.get(each.name, f"--{each.name.replace('_', '-')}")
                return f"{option} is {_shown(one)} there, {_shown(two)} here"
        return ""


def _unordered(value: Any) -> Any:
    """Sort a tuple: the order of networks, tasks and options does not change a comparison."""
    return sorted(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        words = ("=".join(each) if isinstance(each, tuple) else str(each) for each in value)
        return " ".join(words) or "not given"
    return "not given" if value in (None, "") else str(value)


@dataclass(frozen=True)
class TrialGroup:
    """Trials with consecutive seeds, which one start of the command added.

    Attributes:
        first: seed of the first trial.
        count: number of trials.
        tasks: names of the tasks with these trials; empty: all tasks.
    """

    first: int
    count: int
    tasks: tuple[str, ...] = ()

    @property
    def seeds(self) -> range:
        """Seeds of the trials."""
        return range(self.first, self.first + self.count)

    @property
    def label(self) -> str:
        """Label on the axis of seeds, such as `0 to 2`."""
        last = self.seeds[-1]
        return str(last) if self.count == 1 else f"{self.first} to {last}"


@dataclass(frozen=True)
class Comparison:
    """Contents of `compare.json`.

    Attributes:
        settings: what the user chose.
        groups: trials so far. The first group has `settings.trials` trials.
        fingerprints: fingerprints of the training and test images of each task, by its name.
        study: SHA-256 of the study file that this command wrote, which shows whether the user has
            edited the file.
        networks: SHA-256 of each network's file, by its path, name or URL. A comparison is not
            continued with different networks.
    """

    settings: CompareSettings
    groups: tuple[TrialGroup, ...]
    fingerprints: dict[str, tuple[str, str]]
    study: str
    networks: dict[str, str] = field(default_factory=dict)


def digest(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def save(comparison: Comparison, folder: Path) -> None:
    """Write `compare.json` to the output folder of a comparison."""
    contents = {"schema": SCHEMA} | asdict(comparison)
    with atomic(folder / SETTINGS) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Comparison | None:
    """Read `compare.json` from an output folder, or return None if it does not exist.

    Raises:
        UserError: the file is damaged or from another release.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    contents = read_json(path)
    try:
        if contents["schema"] != SCHEMA:
            raise ValueError
        return Comparison(
            CompareSettings(**_tuples(contents["settings"])),
            tuple(TrialGroup(**_tuples(group)) for group in contents["groups"]),
            _tuples(contents["fingerprints"]),
            contents["study"],
            dict(contents.get("networks", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} is damaged or from another release. Give another --output."
        ) from None


def _tuples(node: Any) -> Any:
    """Replace all lists in a JSON value by tuples."""
    if isinstance(node, dict):
        return {key: _tuples(value) for key, value in node.items()}
    return tuple(map(_tuples, node)) if isinstance(node, list) else node
