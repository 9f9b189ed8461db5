"""Comparisons of classifiers: tasks from image folders and known datasets, and their runs."""

import argparse
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from classification import known_classes
from classification.compare.kinds import Cost, Kind, Measured, Task
from classification.compare.networks import Network
from classification.compare.options import short_name
from classification.compare.settings import CompareSettings, TrialGroup
from classification.compare.study_file import COMMENT, Placeholders
from classification.datasets.check import check_dataset, lines
from classification.datasets.open import open_images
from classification.datasets.specs import DATASETS
from classification.models import Classifier, Pretrained
from classification.study.commands import COMMANDS
from classification.study.file import StudyRun
from classification.transfer import options as transfer
from classification.transfer.run import open_task, settings_of
from classification.transfer.settings import TransferSettings
from robust_backbones.checkpoint.architectures import arch_row
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError

COMMAND = "transfer"
SHORT_IMAGES = 64  # training images of a short run, if there are not many classes
SHORT_BATCHES = 2  # batches of each epoch of a short run with SGD
STEP = 3  # cost of a training step per image, relative to a prediction
MIN_BATCH = 2


def _open(settings: CompareSettings) -> None:
    for text in _names(settings.data).values():
        source = _source(settings, text)
        for split in ("train", "test"):
            open_images(source["dataset"], split, source.get("data"))


def _tasks(settings: CompareSettings, networks: Sequence[Network]) -> list[Task]:
    for network in networks:
        size = settings.image_size or network.image_size or 0
        trained = network.image_size or size
        for warning in known_classes.size_warnings(trained, size, network.weights):
            print(f"warning: {warning['message']}")
    try:
        names = _names(settings.data)
        return [_task(settings, networks, name, text) for name, text in names.items()]
    except UserError as error:
        if any(f"--{name} " in str(error) for name, _ in settings.changes):
            raise UserError(f"{error} Set options of transfer with --set OPTION=VALUE.") from None
        raise


def _names(data: Sequence[str]) -> dict[str, str]:
    """Map a unique name for each task to the text that the user gave."""
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for text in data:
        place = text if text in DATASETS else str(Path(text).resolve())
        if place in places:
            raise UserError(f"DATA {places[place]} and {text} are the same images. Remove one.")
        places[place] = text
        name = text if text in DATASETS else short_name(text)
        if name in found:
            name = text.strip("/")  # two folders have the same name
        found[name] = text
    return found


def _source(settings: CompareSettings, text: str) -> dict:
    """Return the options that select a dataset."""
    if text not in DATASETS:
        return {"dataset": "folder", "data": text}
    root = {"data": settings.root} if settings.root and DATASETS[text].needs_root else {}
    return {"dataset": text} | root


def _common(settings: CompareSettings) -> dict:
    """Return the options that all runs share."""
    chosen = {
        "mode": settings.mode,
        "image-size": settings.image_size,
        "limit": settings.limit,
        "test-limit": settings.test_limit,
        "shots": settings.shots,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return given | dict(settings.changes)


def _task(settings: CompareSettings, networks: Sequence[Network], name: str, text: str) -> Task:
    """Open the data of a task, and check that every run on it could start."""
    options, common = _source(settings, text), _common(settings)
    source = options["dataset"], options.get("data")
    images = len(open_images(source[0], "train", source[1], limit=settings.limit))
    if (batch := _smaller_batch(settings, networks[0], common | options, images)) is not None:
        options["batch-size"] = batch
        print(f"{name} has only {images} training images. The batch size is {batch}.")
    opened = []
    for network in networks:
        args = _parse(common | options | {"weights": network.weights})
        found = settings_of(args, network.checkpoint)
        with torch.device("meta"):  # the task is opened for its checks, and not run
            model = Classifier.build(network.arch, 1)
        pretrained = Pretrained(model, network.checkpoint, network.weights)
        opened.append(open_task(args, found, pretrained, torch.device("cpu")))
    first = opened[0]
    return Task(
        name=name,
        options=options,
        train=len(first.train),
        test=len(first.test),
        classes=first.train.classes,
        fingerprints=(first.train.fingerprint(), first.test.fingerprint()),
    )


def _smaller_batch(
    settings: CompareSettings, network: Network, options: dict, images: int
) -> int | None:
    """Return a batch size for few images, or None if the default or the user's size fits."""
    found = _settings(options, network)
    if found.sgd is None or "batch-size" in dict(settings.changes):
        return None
    if settings.shots:
        images = min(images, settings.shots * MIN_BATCH)  # every class has its shots
    fitting = int(images * (1 - found.held_out)) - 1
    if fitting >= found.sgd.train.batch_size:
        return None
    return max(MIN_BATCH, 2 ** int(math.log2(max(MIN_BATCH, fitting / 4))))


@cache
def _parser() -> Parser:
    return transfer.parser("")


def _parse(options: dict) -> argparse.Namespace:
    """Parse the options of a run as its command does.

    Raises:
        UserError: an option does not exist, or its value is invalid.
    """
    COMMANDS[COMMAND].check(options)
    return _parser().parse_options(options)


def _settings(options: dict, network: Network) -> TransferSettings:
    return settings_of(_parse(options | {"weights": network.weights}), network.checkpoint)


def _check(settings: CompareSettings) -> None:
    unusable = []
    for name, text in _names(settings.data).items():
        source = _source(settings, text)
        report = check_dataset(source["dataset"], source.get("data"))
        print(*lines(report), sep="\n", flush=True)
        if not report.usable:
            unusable.append(name)
    if unusable:
        raise UserError(f"DATA {', '.join(unusable)}: not usable. Fix the errors above.")


def _parts(
    settings: CompareSettings,
    networks: Sequence[Network],
    tasks: Sequence[Task],
    groups: Sequence[TrialGroup],
) -> list[dict]:
    seeds = _seeds(settings, groups)
    part: dict[str, Any] = {
        COMMENT: "Each network on each task. The axis seed adds trials with further seeds.",
        "name": COMMAND,
        "command": COMMAND,
        "resources": {"gpus": 1},
        "common": _common(settings),
        "axes": {
            "task": {task.name: task.options for task in tasks},
            "weights": {network.label: {"weights": network.weights} for network in networks},
            # The report reads this label where a file does not record the data.
            **({"pretrained_on": [settings.pretrained_on]} if settings.pretrained_on else {}),
            "seed": {label: options for own in seeds.values() for label, options in own.items()},
        },
    }
    if any(group.tasks for group in groups):
        part["only"] = [
            {"seed": [*own], **({"task": [*group.tasks]} if group.tasks else {})}
            for group, own in seeds.items()
        ]
    return [part]


def _seeds(settings: CompareSettings, groups: Sequence[TrialGroup]) -> dict[TrialGroup, dict]:
    """Map each group of trials to the labels and options of its runs.

    Trials with fixed features are one run, because they share the features. Other trials are runs
    of their own, which can be executed at the same time.
    """
    if settings.mode == "fixed-feature":
        return {g: {g.label: {"seed": g.first, "trials": g.count}} for g in groups}
    return {g: {str(seed): {"seed": seed, "trials": 1} for seed in g.seeds} for g in groups}


def _short_parts(
    settings: CompareSettings, networks: Sequence[Network], tasks: Sequence[Task]
) -> list[dict]:
    one_per_arch = {network.arch: network for network in reversed(networks)}.values()
    common = {name: value for name, value in _common(settings).items() if name != "shots"}
    found = _settings(common | tasks[0].options, networks[0])
    if found.sgd:
        common["epochs"] = 1
    # The second run with fixed features reads them from the cache: it measures the last layer only.
    seeds = ["0"] if found.sgd else ["0", "1"]
    return [
        {
            "name": COMMAND,
            "command": COMMAND,
            "resources": {"gpus": 1},
            "common": common | {"trials": 1, "seed": Placeholders("{seed}")},
            "axes": {
                "task": {
                    task.name: task.options | _short_limits(task, found, task.options)
                    for task in tasks
                },
                "weights": {n.label: {"weights": n.weights} for n in one_per_arch},
                "seed": seeds,
            },
        }
    ]


def _short_limits(task: Task, found: TransferSettings, options: dict) -> dict:
    images = SHORT_IMAGES
    if found.sgd:
        batch = options.get("batch-size", found.sgd.train.batch_size)
        images = math.ceil(SHORT_BATCHES * batch / (1 - found.held_out)) + task.classes
    return {
        "limit": min(task.train, max(2 * task.classes, images)),
        "test-limit": min(task.test, max(task.classes, SHORT_IMAGES // 2)),
    }


def _cost(
    run: StudyRun, short: Sequence[Measured], networks: Sequence[Network], tasks: Sequence[Task]
) -> Cost:
    task = next(t for t in tasks if t.name == run.labels["task"])
    network = next(n for n in networks if n.weights == run.options["weights"])
    archs = {n.weights: n.arch for n in networks}
    own = [
        m
        for m in short
        if m.run.labels["task"] == task.name and archs[m.run.options["weights"]] == network.arch
    ]
    start = max(m.start for m in own)
    seen = own[0].run.options
    small = seen["limit"], seen["test-limit"]
    found = _settings(run.options, network)
    per_trial = task.train if not found.shots else min(task.train, found.shots * task.classes)
    if found.sgd:
        units = _units(found, per_trial, task.test)
        measured = _units(_settings(seen, network), *small)
        work = max(m.seconds for m in own) * units / measured
        temporary = 3 * network.path.stat().st_size  # checkpoints
        return Cost(start + 0.6 * work, start + 1.3 * work, 0, temporary)
    full, cached = (f(m.seconds for m in own) for f in (max, min))
    images = min(task.train, found.trials * per_trial) + task.test
    features = (full - cached) * images / sum(small)
    repeated = run.options.get("seed") and not found.shots  # an earlier run has saved the features
    # Fitting the last layer takes between the square root of the number of images and this number.
    # A part of the time of the cached run does not grow with the trials.
    heads, ratio = cached * found.trials, max(1.0, per_trial / small[0])
    low = max(cached, 0.3 * heads * ratio**0.5) + (0 if repeated else 0.6 * features)
    high = heads * ratio + (0 if repeated else 1.5 * features)
    disk = 0 if repeated else 4.0 * arch_row(network.arch).feature_dim * images
    return Cost(start + low, start + high, disk, 0)


def _units(found: TransferSettings, train: int, test: int) -> float:
    """Return the work of training runs with SGD, in predictions of an image."""
    assert found.sgd is not None
    sgd, epochs = found.sgd, found.sgd.train.epochs
    evaluations = math.ceil(epochs / sgd.eval_every)
    choosing = 0.0
    if found.chooses:
        held = found.held_out * train
        choosing = len(sgd.lrs) * (STEP * epochs * (train - held) + evaluations * held)
    return found.trials * (choosing + STEP * epochs * train + test)


KIND = Kind(
    command=COMMAND,
    managed={
        "weights": "--weights",
        "dataset": "DATA",
        "data": "DATA or --data",
        "mode": "--mode",
        "trials": "--trials",
        "seed": "--trials or --more",
        "image-size": "--image-size",
        "limit": "--limit",
        "test-limit": "--test-limit",
        "shots": "--shots",
        "output": "--output",
    },
    assumes="that time grows with images, epochs, learning rates and trials, and that nothing else "
    "uses the machine",
    open=_open,
    tasks=_tasks,
    check=_check,
    parts=_parts,
    short_parts=_short_parts,
    cost=_cost,
)
