"""Run a transfer experiment: open the data and the network, run the trials, write the result."""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from classification import known_classes
from classification.datasets.open import open_images, open_test_folder
from classification.datasets.split import ImageSplit
from classification.models import Classifier, Pretrained, described, fill
from classification.robustness_eval.autoattack import require_package
from classification.training import distributed, launch
from classification.training.trainer import identity
from classification.transfer import conditions, finetune, fixed_feature, result
from classification.transfer.options import make_settings, parser
from classification.transfer.settings import SourceNetwork, TransferSettings
from classification.transfer.task import Task
from robust_backbones import corruptions
from robust_backbones.arithmetic import autocast_dtype
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.checkpoint.read import read_weights
from robust_backbones.core import input_statistics, run_log
from robust_backbones.core.errors import UserError, memory_advice
from robust_backbones.core.images import Decoding
from robust_backbones.weights import short_name


def main(args: argparse.Namespace, path: Path) -> None:
    """Run the experiment, unless the output folder contains its finished result.

    Args:
        args: parsed options.
        path: path of the weight file.
    """
    found = read_weights(args.weights, path=path, statistics=input_statistics.given(args))
    settings = settings_of(args, found)
    drop_path = settings.sgd.train.drop_path if settings.sgd else 0.0
    model = fill(found, drop_path)
    _run(args, settings, Pretrained(model, dataclasses.replace(found, tensors={}), args.weights))


def measure_transfer(model: Classifier, output: str | Path, **settings: Any) -> dict:
    """Measure a classifier's transfer to a dataset, as `robust-backbones transfer` does.

    Args:
        model: pretrained classifier. Its last layer is replaced in a copy.
        output: folder for the run. An interrupted run in it is resumed.
        settings: options of the command by name, such as `dataset="digits"` and
            `mode="full-network"`.

    Returns:
        The metrics in `result.json`; docs/reference/formats.md describes them.

    Raises:
        UserError: an option is unknown or invalid, or the classifier has no last layer.
    """
    network = described(model)
    args = parser("").parse_options(settings | {"weights": network.name, "output": output})
    _run(args, settings_of(args, network.file), network)
    return json.loads((args.output / "result.json").read_text(encoding="utf-8"))["metrics"]


def _run(args: argparse.Namespace, settings: TransferSettings, network: Pretrained) -> None:
    # Report missing packages now, not after hours of training.
    if settings.conditions.autoattack:
        require_package()
    if settings.conditions.corruptions:
        corruptions.package_version()
    with launch.processes(args.device, args.deterministic, args.precision) as device:
        warnings = _warn(settings, network) if distributed.rank() == 0 else []
        task = open_task(args, settings, network, device)
        training = settings.sgd.train if settings.sgd else None
        work = partial(_work, task, warnings)
        resume = "Repeat the same command to continue."
        launch.once(task.folder, task.recorded, training, device, work, resume)


def _warn(settings: TransferSettings, network: Pretrained) -> list[dict]:
    """Print warnings about the results, and return the warnings that are not in the settings."""
    name = network.name
    input_statistics.announce(settings.statistics, name)
    known_classes.announce_input(settings.network.source_input, settings.image_size, name)
    found = known_classes.size_warnings(settings.network.image_size, settings.image_size, name)
    found += known_classes.unfinished_warnings(network.file, name)
    for warning in found:
        print(f"warning: {warning['message']}", file=sys.stderr)
    return found


def settings_of(args: argparse.Namespace, weights: Checkpoint) -> TransferSettings:
    """Build the settings from the options and the checkpoint.

    Raises:
        UserError: options contradict each other.
    """
    trained = known_classes.image_size(weights)
    stated = known_classes.source_input(weights)
    network = SourceNetwork(weights.arch, trained, weights.statistics, weights.sha256, stated)
    return make_settings(args, network)


def open_task(
    args: argparse.Namespace, settings: TransferSettings, network: Pretrained, device: torch.device
) -> Task:
    """Open the data, and check the options and the data before the run.

    Args:
        args: parsed options.
        settings: settings that `settings_of` made from these options.
        network: pretrained network.
        device: device of this process.

    Raises:
        UserError: the data cannot be opened, or are too few for the options.
    """
    if distributed.world() > 1 and not settings.sgd:
        raise UserError(
            f"--probe {settings.parts.probe} runs in one process. Start it without torchrun."
        )
    train = _open(args, settings, "train", settings.limit)
    test = _open(args, settings, "test", settings.test_limit)
    shifts = tuple(
        open_test_folder(name, Path(folder), test, settings.test_limit)
        for name, folder in settings.conditions.also_test
    )
    task = Task(
        network,
        train,
        test,
        settings,
        identity(train, test),
        Path(),
        device,
        launch.loading_workers(args.workers, device),
        args.save_seconds,
        shifts=shifts,
        shift_data=identity(*shifts),
    )
    task = dataclasses.replace(task, folder=args.output or _folder(args, task.recorded))
    task.check()
    return task


def _open(
    args: argparse.Namespace, settings: TransferSettings, split: str, limit: int | None
) -> ImageSplit:
    source = open_images(
        args.dataset,
        split,
        args.data,
        image_size=settings.image_size,
        limit=limit,
        decoding=Decoding(args.image_range, upright=settings.parts.orientation == "applied"),
    )
    return dataclasses.replace(source, downscale=settings.downscale, decode=settings.decode)


def _folder(args: argparse.Namespace, recorded: dict) -> Path:
    """Return a folder name that depends on all settings, so that different runs do not collide."""
    text = json.dumps(recorded, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts = (args.dataset, args.mode, args.protocol, short_name(args.weights), digest)
    return Path("output", "transfer", "-".join(parts))


def _probe_advice(settings: TransferSettings) -> str:
    """Return a sentence with the options that reduce the memory of features and probes."""
    fixes = {
        "--precision bfloat16": autocast_dtype(settings.precision) is None,
        "a smaller --image-size": True,
        "a single --penalty": settings.parts.probe == "logistic" and settings.chooses,
    }
    return f"Use {', '.join(fix for fix, helps in fixes.items() if helps)} or --device cpu."


def _introduction(task: Task) -> dict[str, str]:
    """Describe the run, its data and its weights in one line each."""
    settings, train, test = task.settings, task.train, task.test
    return {
        "transfer": f"{settings.mode}, protocol {settings.protocol}, probe {settings.parts.probe}, "
        f"{settings.trials} trials",
        "data": f"{settings.dataset}: {len(train)} training images, {len(test)} test images, "
        f"{train.classes} classes, {settings.image_size} pixels",
        "weights": f"{task.network.name} ({settings.network.arch})",
    }


def _work(task: Task, warnings: list[dict]) -> None:
    start = time.perf_counter()
    precision = task.settings.precision
    launch.announce(_introduction(task), task.device, task.workers, precision, task.folder)
    with task.signals.watch():
        if task.settings.sgd:
            trials = finetune.run(task)
        else:
            with memory_advice(_probe_advice(task.settings)):
                trials = fixed_feature.run(task)
        with memory_advice("Use a smaller --attack-batch-size, --image-size, or --device cpu."):
            measured, doubts = conditions.measure(task, trials)
        if distributed.rank() == 0:
            seconds = time.perf_counter() - start
            summary = result.write(task, trials, measured, seconds, warnings + doubts)
            run_log.say(f"{summary} -> {task.folder}")
            finetune.remove_weights(task)
            conditions.remove_journals(task)
