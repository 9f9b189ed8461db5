"""Run an interpretation: optimize and measure the images, write result.json and the figure."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from classification import progress
from classification.datasets.open import open_images
from classification.datasets.split import ImageSplit
from classification.interpret import figure, report
from classification.interpret.options import InterpretSettings
from classification.interpret.plan import Plan, make_plan, optimize_images
from classification.models import Classifier, load_classifier
from classification.training.launch import choose_device
from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import claimed, sha256
from robust_backbones.core.images import Decoding

# Settings that do not affect the results. Digests identify networks and data instead of paths.
LOCATIONS = ("networks", "eval_weights", "data", "device", "output")


@dataclass(frozen=True)
class Networks:
    """The networks to interpret by name, and the evaluation classifier if there is one."""

    interpreted: dict[str, Classifier]
    evaluation: Classifier | None


def run(settings: InterpretSettings, paths: dict[str, Path], eval_path: Path | None) -> None:
    """Interpret networks, unless the output folder has a finished run with the same settings.

    Args:
        settings: settings of the run.
        paths: weight file of each network by its name.
        eval_path: weight file of the evaluation classifier, or None.

    Raises:
        UserError: weights or data cannot be used; the output folder contains a different run.
    """
    split = None
    if settings.needs_data:
        split = open_images(
            settings.dataset,
            "test",
            settings.data,
            image_size=settings.image_size,
            decoding=Decoding(settings.image_range),
        )
    record = _record(settings, paths, eval_path, split)
    if results.finished(settings.output / "result.json", record):
        return
    evaluation = None if eval_path is None else load_classifier(eval_path)
    networks = Networks({name: load_classifier(path) for name, path in paths.items()}, evaluation)
    _check_evaluation(settings, record, networks)
    _check_targets(settings, networks)
    classes = min(network.num_classes for network in networks.interpreted.values())
    plan = make_plan(settings, split, classes)
    device = choose_device(settings.device)
    with claimed(settings.output):
        _optimize(settings, plan, networks, split, record | {"device": str(device)}, device)


def _record(
    settings: InterpretSettings,
    paths: dict[str, Path],
    eval_path: Path | None,
    split: ImageSplit | None,
) -> dict:
    """Return all settings and digests that determine the results, as plain JSON types."""
    options = {key: value for key, value in asdict(settings).items() if key not in LOCATIONS}
    return options | {
        "networks": {name: sha256(path) for name, path in paths.items()},
        "eval_network": eval_path and sha256(eval_path),
        "dataset": settings.dataset if split else None,
        "fingerprint": split and split.fingerprint(),
        "orientation": "applied",
        "constraint": "l2",
    }


def _check_evaluation(settings: InterpretSettings, record: dict, networks: Networks) -> None:
    if networks.evaluation is None:
        return
    for name, network in networks.interpreted.items():
        if record["eval_network"] == record["networks"][name]:
            raise UserError(
                f"--eval-weights {settings.eval_weights}: this is the network {name} itself. "
                "Choose a classifier that is not among --weights."
            )
        if networks.evaluation.num_classes != network.num_classes:
            raise UserError(
                f"--eval-weights {settings.eval_weights}: it has {networks.evaluation.num_classes} "
                f"classes, but {name} has {network.num_classes}. Choose a classifier with the same "
                "classes."
            )


def _check_targets(settings: InterpretSettings, networks: Networks) -> None:
    for name, network in networks.interpreted.items():
        counts = {"class": network.num_classes, "unit": network.head.in_features}
        for kind, index in settings.targets(network.num_classes):
            if index >= counts[kind]:
                option = {"class": "--classes", "unit": "--units"}[kind]
                raise UserError(
                    f"{option} {index}: {name} has no such {kind}. Choose from 0 to "
                    f"{counts[kind] - 1}."
                )


def _optimize(
    settings: InterpretSettings,
    plan: Plan,
    networks: Networks,
    split: ImageSplit | None,
    record: dict,
    device: torch.device,
) -> None:
    """Optimize and measure all images, then write the results. result.json is written last."""
    began = time.perf_counter()
    line = progress.ProgressLine(len(networks.interpreted) * plan.columns * settings.steps)
    evaluation = networks.evaluation and networks.evaluation.to(device)
    optimized, rows = {}, {}
    for name, network in networks.interpreted.items():

        def show(images: int, doing: str, name: str = name) -> None:
            line.show(images, f"{name}: {doing}")

        network.to(device)
        optimized[name] = optimize_images(network, plan, settings, show)
        rows[name] = report.measure(network, evaluation, plan, optimized[name], settings.batch_size)
        network.cpu()  # keep only one network at a time on the device
    line.clear()
    figure.save_images(settings.output, plan, optimized)
    figure.draw(settings.output, plan, optimized)
    print(report.table(rows))
    warnings = report.warnings(rows)
    for warning in warnings:
        print(f"warning: {warning['message']}", file=sys.stderr)
    seconds = time.perf_counter() - began
    _write(settings, rows, networks, split, record, seconds, warnings)
    print(f"networks: {len(rows)}, {seconds:.0f} s -> {settings.output}")


def _write(
    settings: InterpretSettings,
    rows: dict,
    networks: Networks,
    split: ImageSplit | None,
    record: dict,
    seconds: float,
    warnings: list[dict],
) -> None:
    data = {"test": split.describe()} if split else {}
    names = {
        "weights": settings.networks,
        "eval_weights": settings.eval_weights,
        "archs": {name: network.arch for name, network in networks.interpreted.items()},
    }
    results.write(
        settings.output / "result.json",
        kind="interpret",
        metrics={"networks": rows},
        settings=record | names,
        weights_sha256=next(iter(record["networks"].values())),
        data=data,
        seed=settings.seed,
        seconds=seconds,
        warnings=warnings,
    )
