"""Comparisons of detectors: their data, schedules and runs. Detectors run in other processes."""

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from classification.compare.kinds import Cost, Kind, Measured, Task
from classification.compare.networks import Network
from classification.compare.options import short_name
from classification.compare.settings import CompareSettings, TrialGroup
from classification.compare.study_file import COMMENT, Placeholders
from classification.study.commands import PROGRAM
from classification.study.file import StudyRun
from robust_backbones import archs, sources, zoo
from robust_backbones.core.dataset_pairs import find_pair
from robust_backbones.core.errors import UserError
from robust_backbones.core.resources import require_config
from robust_backbones.core.results import flatten

COMMAND = "train"
BACKBONE, CANDIDATES, DETECTION = "backbone", "learning-rate", "detection"  # parts of the study
# Default config of detectors or of semantic segmentation, with a ResNet and with a timm network.
CONFIGS = {
    False: ("own_data_faster_rcnn.yaml", "own_data_faster_rcnn_timm.yaml"),
    True: ("own_data_semantic_fpn.yaml", "own_data_semantic_fpn_timm.yaml"),
}
# Packaged configs without a schedule of their own.
OWN_DATA = (
    *(name for names in CONFIGS.values() for name in names),
    "own_data_mask_rcnn.yaml",
    "own_data_retinanet.yaml",
)
HELD_OUT = 0.2  # fraction of the training images on which learning rates are compared
FACTORS = (1 / 4, 1, 4)  # candidate learning rates, relative to the config's

# Schedule of the paper on VOC: 18,000 iterations of 16 images are 17.4 passes over the 16,551
# training images. The learning rate drops after 12,000 and 16,000 iterations, and is warmed up for
# 100. Small datasets need a minimum of updates, because all layers of the heads are new.
PASSES, LEAST, BATCH = 18, 2000, 16
DROPS, WARMUP = (2 / 3, 8 / 9), 100
CHECKPOINTS = 2  # checkpoints that stay on the disk

SHORT_IMAGES, SHORT_TEST = 64, 8  # training and test images of a short run
# Time to evaluate an image, relative to a training step on it. Range over image sizes and objects.
EVALUATION = (0.3, 1.0)
DEFAULTS = {  # Detectron2's values of the keys that are read here
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.001,
    "MODEL.MASK_ON": False,
    "DATASETS.REPAIR": False,
}
_MASKS = re.compile(r"(?:[\w.-]+=)?mask:")
CHECKED_BY = ("MODEL.MASK_ON", "DATASETS.REPAIR")  # config keys that determine what is an error


def _config_file(settings: CompareSettings, networks: Sequence[Network]) -> str:
    """Return the config file of the detectors. The default depends on the data and networks."""
    timm = any(network.arch.startswith(archs.TIMM) for network in networks)
    return settings.config or CONFIGS[_is_semantic(settings)][timm]


def _is_semantic(settings: CompareSettings) -> bool:
    """Return whether the data have semantic masks.

    Raises:
        UserError: some data have masks, and others have objects.
    """
    kinds = {bool(_MASKS.match(text)) for text in settings.data}
    if len(kinds) > 1:
        raise UserError(
            "DATA: mask:... needs a different model than the other data. Compare them in separate "
            "commands."
        )
    return True in kinds


def _config(settings: CompareSettings, networks: Sequence[Network] = ()) -> dict:
    """Return the flat configuration of the detectors: the file, its `_BASE_`s and `--set`."""
    changes = {key: yaml.safe_load(value) for key, value in settings.changes}
    return DEFAULTS | _read(_config_file(settings, networks)) | changes


@cache
def _read(name: str) -> dict:
    path = require_config(name)
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        base = contents.pop("_BASE_", None)
        own = flatten(contents)
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path}: not a config file ({reason}).") from None
    if base is None:
        return own
    above = path.parent / base
    return _read(str(above if above.is_file() else base)) | own


def _open(settings: CompareSettings) -> None:
    _check_options(settings, ())
    config = _config(settings)
    for text in settings.data:
        _inspect(_sets(settings, text), config)


def _tasks(settings: CompareSettings, networks: Sequence[Network]) -> list[Task]:
    _check_options(settings, networks)
    config, tasks = _config(settings, networks), []
    for text in settings.data:
        name = short_name(text)
        train, test = _sets(settings, text)
        train_part, test_part = _inspect((train, test), config)
        _check_classes(text, train_part, test_part)
        options = {"dataset-train": train, "dataset-test": test}
        options |= _schedule(settings, config, train_part["images"])
        digests = train_part["digest"], test_part["digest"]
        images = train_part["images"], test_part["images"]
        tasks.append(Task(name, options, *images, len(train_part["classes"]), digests))
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"DATA: two datasets are named {tasks[0].name}. Use NAME=voc:... for each.")
    return tasks


def _sets(settings: CompareSettings, text: str) -> tuple[str, str]:
    return find_pair(text, settings.test, short_name(text))


def _check_options(settings: CompareSettings, networks: Sequence[Network]) -> None:
    if settings.test and len(settings.data) > 1:
        raise UserError(
            "--test applies to one DATA. Compare several datasets in separate commands."
        )
    if unknown := [key for key, _ in settings.changes if not key[:1].isupper()]:
        raise UserError(f"--set {unknown[0]}: give a config key, such as INPUT.MIN_SIZE_TEST=600.")
    for network in networks:
        if network.weights.startswith(zoo.SCHEME):
            zoo.find_backbone(network.weights)
        elif network.arch not in archs.RESNETS and not network.arch.startswith(archs.TIMM):
            raise UserError(
                f"--weights {network.weights}: a {network.arch} cannot be the backbone of a "
                f"detector. Choose a timm network, or one of {', '.join(archs.RESNETS)}."
            )
    kinds = {network.arch.startswith(archs.TIMM): network for network in networks}
    if len(kinds) > 1:
        raise UserError(
            f"--weights: {kinds[True].arch} and {kinds[False].arch} need different detectors and "
            "learning rates. Compare timm networks in another command."
        )


def _inspect(sets: tuple[str, ...], config: dict) -> list[dict]:
    """Read the annotations of datasets with `check-data`, and return its summaries.

    Raises:
        UserError: a file cannot be read, or an annotation is invalid.
    """
    return _summaries(sets, *(config[key] for key in CHECKED_BY))


@cache
def _summaries(sets: tuple[str, ...], *values: bool) -> list[dict]:
    config = dict(zip(CHECKED_BY, values, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "summary.json")
        words = ["--no-pixels", "--json", str(file)]
        done = _check_data(sets, config, words, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(file.read_text(encoding="utf-8"))
    print(done.stdout, end="", flush=True)
    print(done.stderr, end="", file=sys.stderr, flush=True)
    raise UserError(_unusable(config))


def _check_data(
    sets: Sequence[str], config: dict, words: Sequence[str] = (), **how: Any
) -> subprocess.CompletedProcess:
    options = [] if config["MODEL.MASK_ON"] else ["--boxes-only"]
    options += ["--repair"] if config["DATASETS.REPAIR"] else []
    command = [sys.executable, *PROGRAM, "check-data", *sets, *options, *words]
    return subprocess.run(command, check=False, **how)


def _unusable(config: dict) -> str:
    fix = "" if config["DATASETS.REPAIR"] else ", or repair boxes with --set DATASETS.REPAIR=True"
    return f"DATA: not usable. Fix the errors above{fix}."


def _check_classes(text: str, train: dict, test: dict) -> None:
    trained = dict(zip(train["classes"], train["objects"], strict=True))
    tested = dict(zip(test["classes"], test["objects"], strict=True))
    untrained = [name for name, count in tested.items() if count and not trained.get(name)]
    if untrained:
        which = "this class" if len(untrained) == 1 else "these classes"
        raise UserError(
            f"DATA {text}: no training images contain {', '.join(untrained[:8])}, but some test "
            f"images do. Remove {which}, or split the images differently."
        )


def _schedule(settings: CompareSettings, config: dict, images: int) -> dict:
    """Return the config keys of the schedule, except keys that the user has set.

    A config that has a schedule keeps it, unless `--iterations` is given.
    """
    batch = int(config["SOLVER.IMS_PER_BATCH"])
    number = settings.iterations
    scheduled = settings.config and Path(settings.config).name not in OWN_DATA
    if number is None and scheduled and "SOLVER.MAX_ITER" in config:
        return {}
    if number is None:
        number = max(LEAST * BATCH, PASSES * images) // batch
    steps = sorted({max(1, round(number * drop)) for drop in DROPS})
    keys = {
        "SOLVER.MAX_ITER": number,
        "SOLVER.STEPS": str(tuple(steps)),
        "SOLVER.WARMUP_ITERS": min(WARMUP, number // 10),
        "SOLVER.CHECKPOINT_PERIOD": number // CHECKPOINTS + 1,
    }
    chosen = dict(settings.changes)
    return {key: value for key, value in keys.items() if key not in chosen}


def _check(settings: CompareSettings) -> None:
    config = _config(settings)
    sets = [part for text in settings.data for part in _sets(settings, text)]
    if _check_data(sets, config).returncode:
        raise UserError(_unusable(config))


def _rates(settings: CompareSettings, networks: Sequence[Network]) -> list[float]:
    if settings.learning_rates:
        return sorted(set(settings.learning_rates))
    rate = _config(settings, networks)["SOLVER.BASE_LR"]
    return [float(f"{factor * rate:.3g}") for factor in FACTORS]


def _common(settings: CompareSettings, networks: Sequence[Network]) -> dict:
    return {"config": _config_file(settings, networks)} | {
        key: yaml.safe_load(value) if value.isdecimal() else value
        for key, value in settings.changes
    }


def _is_published(network: Network) -> bool:
    """Return whether detectors load the network by its name, without conversion."""
    return network.weights.startswith((zoo.SCHEME, *(f"{name}://" for name in sources.SCHEMES)))


def _backbone_part(networks: Sequence[Network]) -> list[dict]:
    """Return the part that converts classifiers to backbones; empty if all are published."""
    own = {n.label: {"source": n.weights} for n in networks if not _is_published(n)}
    note = "Classifiers, converted for Detectron2."
    part = {COMMENT: note, "name": BACKBONE, "command": "convert", "axes": {"weights": own}}
    return [part] if own else []


def _weights_axis(networks: Sequence[Network]) -> dict:
    return {
        n.label: {
            "MODEL.WEIGHTS": n.weights
            if _is_published(n)
            else Placeholders(f"{{{BACKBONE}}}/backbone.pth"),
            "MODEL.ROBUST.ARCH": n.arch,
        }
        for n in networks
    }


def _parts(
    settings: CompareSettings,
    networks: Sequence[Network],
    tasks: Sequence[Task],
    groups: Sequence[TrialGroup],
) -> list[dict]:
    rates, common = _rates(settings, networks), _common(settings, networks)
    shared = {
        "task": {task.name: task.options for task in tasks},
        "weights": _weights_axis(networks),
    }
    base = {"command": COMMAND, "resources": {"gpus": 1}}
    candidates: dict[str, Any] = {
        COMMENT: f"Each learning rate is tried on the {1 - HELD_OUT:.0%} of the training images\n"
        "that are not held out. AP or mIoU is measured on the held-out images.",
        "name": CANDIDATES,
        **base,
        "common": common | {"DATASETS.HELD_OUT": HELD_OUT},
        "axes": shared | {"rate": {f"{rate:g}": {"SOLVER.BASE_LR": rate} for rate in rates}},
    }
    final: dict[str, Any] = {
        COMMENT: "Each network with its best learning rate, on all training images. The axis SEED\n"
        "adds trials.",
        "name": DETECTION,
        **base,
        "common": common | {"SEED": Placeholders("{SEED}")},
        "axes": shared | {"SEED": [str(seed) for group in groups for seed in group.seeds]},
    }
    if len(rates) > 1:
        final["common"]["choose-lr"] = [Placeholders(f"{{{CANDIDATES}}}")]
    else:
        final["common"]["SOLVER.BASE_LR"] = rates[0]
    if any(group.tasks for group in groups):
        final["only"] = [
            {"SEED": [*map(str, group.seeds)], **({"task": [*group.tasks]} if group.tasks else {})}
            for group in groups
        ]
    return [*_backbone_part(networks), *([candidates] if len(rates) > 1 else []), final]


def _short_parts(
    settings: CompareSettings, networks: Sequence[Network], tasks: Sequence[Task]
) -> list[dict]:
    one_per_arch = [*{network.arch: network for network in reversed(networks)}.values()]
    batch = int(_config(settings, networks)["SOLVER.IMS_PER_BATCH"])
    iterations = math.ceil(SHORT_IMAGES / batch)
    keys = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": "()",
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.BASE_LR": min(_rates(settings, networks)),
        "TEST.EVAL_PERIOD": 0,
    }
    common = {k: v for k, v in _common(settings, networks).items() if k not in keys}
    sets = {
        task.name: {
            key: value for key, value in task.options.items() if not key.startswith("SOLVER.")
        }
        | {"DATASETS.HELD_OUT": min(0.5, SHORT_TEST / task.train)}
        for task in tasks
    }
    short = {
        "name": DETECTION,
        "command": COMMAND,
        "resources": {"gpus": 1},
        "common": common | keys,
        "axes": {"task": sets, "weights": _weights_axis(one_per_arch)},
    }
    return [*_backbone_part(one_per_arch), short]


def _cost(
    run: StudyRun, short: Sequence[Measured], networks: Sequence[Network], tasks: Sequence[Task]
) -> Cost:
    detectors = [m for m in short if m.run.command == COMMAND]
    disk = max((m.run.folder / "model_final.pth").stat().st_size for m in detectors)
    if run.command != COMMAND:
        seconds = [m.seconds + m.start for m in short if m.run.command == run.command] or [0.0]
        return Cost(max(seconds), 2 * max(seconds), disk / 2, 0)
    task = next(t for t in tasks if t.name == run.labels["task"])
    arch = run.options["MODEL.ROBUST.ARCH"]
    own = next(
        m
        for m in detectors
        if m.run.labels["task"] == task.name and m.run.options["MODEL.ROBUST.ARCH"] == arch
    )
    solver = json.loads(own.run.result.read_text(encoding="utf-8"))["settings"]["SOLVER"]
    step = _seconds_per_step(own.run.folder)
    # Detectron2 rescales batch and schedule to the number of GPUs, as in the short run.
    scale = solver["MAX_ITER"] / own.run.options["SOLVER.MAX_ITER"]
    asked = run.options.get("SOLVER.MAX_ITER") or _read(run.options["config"])["SOLVER.MAX_ITER"]
    steps = int(asked) * scale
    tested = HELD_OUT * task.train if "DATASETS.HELD_OUT" in run.options else task.test
    image = step / solver["IMS_PER_BATCH"]
    fixed = own.start + max(0.0, own.seconds - step * solver["MAX_ITER"])
    low, high = (tested * image * part for part in EVALUATION)
    return Cost(
        own.start + 0.8 * step * steps + low,
        fixed + 1.3 * step * steps + high,
        CHECKPOINTS * disk,
        0,
    )


def _seconds_per_step(folder: Path) -> float:
    """Return the median time of a training step that Detectron2 has logged, s."""
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    return float([row for row in map(json.loads, lines) if "time" in row][-1]["time"])


KIND = Kind(
    command=COMMAND,
    managed={
        "MODEL.WEIGHTS": "--weights",
        "DATASETS.TRAIN": "DATA",
        "DATASETS.TEST": "--test",
        "DATASETS.CUSTOM": "DATA",
        "DATASETS.HELD_OUT": "--lr",
        "SOLVER.BASE_LR": "--lr",
        "SOLVER.MAX_ITER": "--iterations",
        "SEED": "--trials or --more",
        "OUTPUT_DIR": "--output",
    },
    assumes="that time grows with iterations and test images, and that nothing else uses the "
    "machine",
    open=_open,
    tasks=_tasks,
    check=_check,
    parts=_parts,
    short_parts=_short_parts,
    cost=_cost,
)
