"""Run an interpretation: optimize and measure the images, write result.json and the figure."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from classification import known_classes, progress
from classification.datasets.open import open_images
from classification.datasets.split import ImageSplit
from classification.interpret import figure, report
from classification.interpret.options import InterpretSettings
from classification.interpret.plan import Plan, make_plan, optimize_images
from classification.models import Pretrained, load_pretrained
from classification.training.launch import choose_device
from robust_backbones import arithmetic, timm_networks
from robust_backbones.core import results
from robust_backbones.core.errors import UserError, memory_advice
from robust_backbones.core.files import claimed
from robust_backbones.core.images import Decoding
from robust_backbones.core.input_statistics import announce

# Settings that do not affect the results. Digests identify networks and data instead of paths.
LOCATIONS = ("networks", "eval_weights", "data", "device", "output")


@dataclass(frozen=True)
class Networks:
    """The networks to interpret by name, and the evaluation classifier if there is one."""

    interpreted: dict[str, Pretrained]
    evaluation: Pretrained | None

    @property
    def all(self) -> list[Pretrained]:
        return [*self.interpreted.values(), *([self.evaluation] if self.evaluation else [])]


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
    networks = Networks(
        {
            name: load_pretrained(settings.networks[name], path, settings.statistics)
            for name, path in paths.items()
        },
        load_pretrained(str(settings.eval_weights), eval_path, settings.statistics)
        if eval_path
        else None,
    )
    record = _record(settings, networks, split)
    if results.finished(settings.output / "result.json", record):
        return
    for network in networks.all:
        timm_networks.check_size(network.model.arch, settings.image_size)
    _check_evaluation(settings, networks)
    _check_targets(settings, networks)
    _check_names(settings, networks, split)
    doubts = _warn(settings, networks)
    classes = min(network.model.num_classes for network in networks.interpreted.values())
    plan = make_plan(settings, split, classes)
    device = choose_device(settings.device)
    arithmetic.set_tf32(False)
    with claimed(settings.output):
        _optimize(settings, plan, networks, split, record, doubts, device)


def _record(settings: InterpretSettings, networks: Networks, split: ImageSplit | None) -> dict:
    """Return all settings and digests that determine the results, as plain JSON types."""
    options = {key: value for key, value in asdict(settings).items() if key not in LOCATIONS}
    files = {name: network.file for name, network in networks.interpreted.items()}
    evaluation = networks.evaluation and networks.evaluation.file
    named = all(_class_names(network) for network in networks.all)
    return options | {
        "networks": {name: file.sha256 for name, file in files.items()},
        "eval_network": evaluation and evaluation.sha256,
        "statistics": {name: file.statistics.to_json() for name, file in files.items()},
        "eval_statistics": evaluation and evaluation.statistics.to_json(),
        "trained_image_size": {
            name: known_classes.image_size(file) for name, file in files.items()
        },
        "classes_compared_by": known_classes.NAMES if named else known_classes.NUMBER,
        "dataset": settings.dataset if split else None,
        "fingerprint": split and split.fingerprint(),
        "orientation": "applied",
        "constraint": "l2",
    }


def _class_names(network: Pretrained) -> tuple[str, ...] | None:
    return known_classes.class_names(network.file.training)


def _check_evaluation(settings: InterpretSettings, networks: Networks) -> None:
    if networks.evaluation is None:
        return
    own = networks.evaluation.model.num_classes
    for name, network in networks.interpreted.items():
        if networks.evaluation.file.sha256 == network.file.sha256:
            raise UserError(
                f"--eval-weights {settings.eval_weights}: this is the network {name} itself. "
                "Choose a classifier that is not among --weights."
            )
        if own != network.model.num_classes:
            raise UserError(
                f"--eval-weights {settings.eval_weights}: it has {own} classes, but {name} has "
                f"{network.model.num_classes}. Choose a classifier with the same classes."
            )


def _check_targets(settings: InterpretSettings, networks: Networks) -> None:
    for name, network in networks.interpreted.items():
        model = network.model
        counts = {"class": model.num_classes, "unit": model.head.in_features}
        for kind, index in settings.targets(model.num_classes):
            if index >= counts[kind]:
                option = {"class": "--classes", "unit": "--units"}[kind]
                raise UserError(
                    f"{option} {index}: {name} has no such {kind}. Choose from 0 to "
                    f"{counts[kind] - 1}."
                )


def _check_names(settings: InterpretSettings, networks: Networks, split: ImageSplit | None) -> None:
    """Check that class indices denote the same classes in all networks and in the data.

    The images may have different classes than the networks, because an inversion needs no classes.
    """
    named = {f"--weights {name}": _class_names(n) for name, n in networks.interpreted.items()}
    if networks.evaluation:
        named[f"--eval-weights {settings.eval_weights}"] = _class_names(networks.evaluation)
    pairs = [(name, names) for name, names in named.items() if names]
    visualizes = settings.targets(max(n.model.num_classes for n in networks.all))
    if networks.evaluation or any(kind == "class" for kind, _ in visualizes):
        for name, names in pairs[1:]:
            known_classes.check_names(pairs[0][1], names, pairs[0][0], name)
    for name, names in pairs:
        if split and sorted(names) == sorted(split.class_names):
            known_classes.check_names(names, split.class_names, name, split.name)


def _warn(settings: InterpretSettings, networks: Networks) -> list[dict]:
    """Print warnings about the results, and return the warnings that are not in the settings."""
    found = []
    for network in networks.all:
        announce(network.file.statistics, network.name)
        trained = known_classes.image_size(network.file)
        found += known_classes.size_warnings(trained, settings.image_size, network.name)
        found += known_classes.unfinished_warnings(network.file, network.name)
    _print_warnings(found)
    return found


def _print_warnings(warnings: list[dict]) -> None:
    for warning in warnings:
        print(f"warning: {warning['message']}", file=sys.stderr)


def _optimize(
    settings: InterpretSettings,
    plan: Plan,
    networks: Networks,
    split: ImageSplit | None,
    record: dict,
    doubts: list[dict],
    device: torch.device,
) -> None:
    """Optimize and measure all images, then write the results. result.json is written last."""
    began = time.perf_counter()
    line = progress.ProgressLine(len(networks.interpreted) * plan.columns * settings.steps)
    evaluation = networks.evaluation.model.to(device) if networks.evaluation else None
    optimized, rows = {}, {}
    for name, interpreted in networks.interpreted.items():
        network = interpreted.model

        def show(images: int, doing: str, name: str = name) -> None:
            line.show(images, f"{name}: {doing}")

        batch = f"--batch-size {settings.batch_size}"
        with memory_advice("Use a smaller --batch-size or --device cpu.", batch):
            network.to(device)
            optimized[name] = optimize_images(network, plan, settings, show)
            rows[name] = report.measure(
                network, evaluation, plan, optimized[name], settings.batch_size
            )
        network.cpu()  # keep only one network at a time on the device
    line.clear()
    figure.save_images(settings.output, plan, optimized)
    figure.draw(settings.output, plan, optimized)
    print(report.table(rows))
    warnings = report.warnings(rows)
    _print_warnings(warnings)
    seconds = time.perf_counter() - began
    _write(settings, rows, networks, split, record, device, seconds, doubts + warnings)
    print(f"networks: {len(rows)}, {seconds:.0f} s -> {settings.output}")


def _write(
    settings: InterpretSettings,
    rows: dict,
    networks: Networks,
    split: ImageSplit | None,
    record: dict,
    device: torch.device,
    seconds: float,
    warnings: list[dict],
) -> None:
    data = {"test": split.describe()} if split else {}
    names = {
        "weights": settings.networks,
        "eval_weights": settings.eval_weights,
        "archs": {name: network.file.arch for name, network in networks.interpreted.items()},
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
        device=device,
        warnings=warnings,
    )
