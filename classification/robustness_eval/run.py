"""Run one robustness evaluation: open the model and the data, attack, and write the results.

Several processes, started by `torchrun`, share the batches. Each batch has its own seeds, so the
results do not depend on the number of processes. Process 0 writes the results.
"""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from classification import known_classes
from classification.datasets.open import open_images
from classification.datasets.split import ImageSplit, balanced
from classification.models import Classifier, Pretrained, described, load_pretrained
from classification.robustness_eval import options, report
from classification.robustness_eval.autoattack import require_package
from classification.robustness_eval.checks import find_warnings
from classification.robustness_eval.execute import attack_images
from classification.robustness_eval.plan import AttackResult, autoattack_parts, make_plan
from classification.shared_batches import Journals
from classification.training import distributed
from classification.training.launch import choose_device, describe_device, loading_workers
from robust_backbones import arithmetic, timm_networks
from robust_backbones.core import input_statistics, results
from robust_backbones.core.eps import STEP_FACTOR
from robust_backbones.core.errors import UserError, counted, memory_advice
from robust_backbones.core.files import atomic, claimed
from robust_backbones.core.images import Decoding
from robust_backbones.core.input_statistics import SOURCES, InputStatistics

JOURNAL = "state"  # name of the journals


@dataclass(frozen=True)
class RobustnessSettings:
    """Settings that determine the results of an evaluation; see docs/reference/formats.md.

    Sequences are lists, not tuples, so that they compare equal to parsed JSON.
    """

    weights_sha256: str
    statistics: dict
    dataset: str
    classes_compared_by: str
    fingerprint: str
    image_size: int
    image_range: list[float] | None
    trained_image_size: int | None
    source_input: dict
    images: int
    constraint: str
    eps: list[float]
    steps: list[int]
    restarts: int
    autoattack: list[str]
    batch_size: int
    seed: int
    selection: str = "balanced"  # of `images`, over the classes
    step_size: str = f"{STEP_FACTOR} * eps / steps"
    random_start: bool = True
    use_best: bool = True
    orientation: str = "applied"


def main(args: argparse.Namespace, weights: Path) -> None:
    """Evaluate the classifier of the options, or resume its evaluation.

    A finished evaluation is left unchanged.

    Args:
        args: parsed command line.
        weights: local weight file of the classifier.

    Raises:
        UserError: the options do not fit the data or the model, or --output has a different run.
    """
    _run(args, load_pretrained(args.weights, weights, input_statistics.given(args)))


def measure_robustness(model: Classifier, output: str | Path, **settings: Any) -> dict:
    """Measure a classifier's accuracy under attack, as `robust-backbones robustness-eval` does.

    Args:
        model: classifier, from a file or of a module of your own. It is switched to eval mode.
        output: folder for the results. An interrupted evaluation in it is resumed.
        settings: options of the command by name, such as `dataset="digits"` and `eps=[0.5, 1]`.

    Returns:
        The metrics in `result.json`; docs/reference/formats.md describes them.

    Raises:
        UserError: an option is unknown or invalid, or as for the command.
    """
    network = described(model)
    args = options.parser("").parse_options(settings | {"weights": network.name, "output": output})
    _run(args, network)
    return json.loads((args.output / "result.json").read_text(encoding="utf-8"))["metrics"]


def _run(args: argparse.Namespace, network: Pretrained) -> None:
    if args.autoattack:
        require_package()  # report a missing package now, not after hours of PGD
    with distributed.group(choose_device(args.device)) as device:
        _evaluate(args, network, device)


def _evaluate(args: argparse.Namespace, network: Pretrained, device: torch.device) -> None:
    first, radii = distributed.rank() == 0, options.radii(args)
    model, read = network.model, network.file
    source = open_images(
        args.dataset,
        "test",
        args.data,
        image_size=args.image_size,
        decoding=Decoding(args.image_range),
    )
    indices = _choose_images(source, args.images, args.seed)
    timm_networks.check_size(model.arch, source.image_size)
    known_classes.check_range(read.training, args.image_range, args.weights)
    described = distributed.from_first(source.describe)
    settings = RobustnessSettings(
        weights_sha256=read.sha256,
        statistics=read.statistics.to_json(),
        dataset=source.name,
        classes_compared_by=known_classes.check_classes(
            read, _classes(model, source), args.weights, source
        ),
        fingerprint=described["fingerprint"],
        image_size=source.image_size,
        image_range=args.image_range,
        trained_image_size=known_classes.image_size(read),
        source_input=known_classes.source_input(read),
        images=len(indices),
        constraint=args.constraint,
        eps=radii,
        steps=sorted(set(args.steps)),
        restarts=args.restarts,
        autoattack=list(autoattack_parts(source.classes)) if args.autoattack else [],
        batch_size=args.batch_size,
        seed=args.seed,
    )
    finished = partial(results.finished, args.output / "result.json", asdict(settings))
    if distributed.from_first(finished):
        return
    doubts = known_classes.size_warnings(
        settings.trained_image_size, settings.image_size, args.weights
    )
    doubts += known_classes.unfinished_warnings(read, args.weights)
    if first:
        input_statistics.announce(read.statistics, args.weights)
        known_classes.announce_input(settings.source_input, settings.image_size, args.weights)
        _print_warnings(doubts)
    arithmetic.set_tf32(False)
    with claimed(args.output) if first else contextlib.nullcontext():
        batch = f"--batch-size {args.batch_size}"
        with memory_advice("Use a smaller --batch-size or --device cpu.", batch):
            found = _attack(model.to(device), source, indices, args, settings)
        if first:
            _write(args, found, source, described, indices, settings, device, doubts)


def _classes(model: Classifier, source: ImageSplit) -> int:
    """Return the number of classes, which only its logits show for a network without features."""
    size = source.image_size
    with torch.no_grad():
        return model(torch.zeros(1, 3, size, size).to(model.normalize.mean)).shape[1]


def _choose_images(source: ImageSplit, wanted: int | None, seed: int) -> list[int]:
    """Return the sorted indices of the images to evaluate."""
    total = len(source)
    if wanted is not None and wanted > total:
        raise UserError(
            f"--images {wanted}: the test split has only {total} images. Choose at most {total}."
        )
    return balanced(source.labels, wanted or total, seed).tolist()


def _attack(
    model: Classifier,
    source: ImageSplit,
    indices: list[int],
    args: argparse.Namespace,
    settings: RobustnessSettings,
) -> list[AttackResult]:
    """Attack all images, or resume from the journals in the output folder."""
    device = next(model.parameters()).device
    shape = (3, source.image_size, source.image_size)
    plan = make_plan(
        args.constraint,
        settings.eps,
        settings.steps,
        args.restarts,
        tuple(settings.autoattack),
        shape,
    )
    workers = loading_workers(args.workers, device)
    if distributed.rank() == 0:
        print(f"device {describe_device(device, workers)}", flush=True)
    return attack_images(
        model,
        source.subset(indices),
        plan,
        _journals(args.output, settings),
        seed=args.seed,
        batch_size=args.batch_size,
        workers=workers,
        say=partial(print, flush=True),
    )


def _journals(folder: Path, settings: RobustnessSettings) -> Journals:
    return Journals(folder, JOURNAL, asdict(settings))


def _write(
    args: argparse.Namespace,
    found: list[AttackResult],
    source: ImageSplit,
    described: dict,
    indices: list[int],
    settings: RobustnessSettings,
    device: torch.device,
    doubts: list[dict],
) -> None:
    """Print and save the results. result.json comes last because it marks the run as finished.

    `described` is the description of all test images, and `doubts` are the warnings that were
    printed before the attacks.
    """
    rows = report.summarize(found)
    warnings = find_warnings(found, source.classes, _causes(settings))
    print(report.format_table(rows))
    _print_warnings(warnings)
    with atomic(args.output / "per_image.jsonl") as temporary:
        lines = (json.dumps(line) + "\n" for line in report.per_image(found, indices))
        temporary.write_text("".join(lines), encoding="utf-8")
    if settings.eps:
        report.draw_curve(rows, args.output / "curve.png")
    seconds = sum(result.seconds for result in found) / distributed.world()
    test = described | {"images": len(indices)}
    results.write(
        args.output / "result.json",
        kind="robustness",
        metrics={"clean_top1": rows["clean"]["accuracy"], "attacks": rows},
        settings=asdict(settings) | {"weights": args.weights},
        weights_sha256=settings.weights_sha256,
        data={"test": test},
        seed=args.seed,
        seconds=seconds,
        processes=distributed.world(),
        device=device,
        warnings=doubts + warnings,
    )
    _journals(args.output, settings).remove()
    print(f"{counted(len(indices), 'image', 'images')}, {seconds:.0f} s -> {args.output}")


def _print_warnings(warnings: list[dict]) -> None:
    for warning in warnings:
        print(f"warning: {warning['message']}", file=sys.stderr)


def _causes(settings: RobustnessSettings) -> list[str]:
    """Return the likely causes of an accuracy at chance level, the most likely first."""
    used, trained = InputStatistics(**settings.statistics), settings.trained_image_size
    size = f"{settings.image_size} pixels here, {trained or 'unknown'} in training"
    by = {
        known_classes.NAMES: "the names agree with the data",
        known_classes.NUMBER: "the weights have no class names to compare",
    }
    return [
        f"the input statistics ({used}, {SOURCES[used.source]})",
        f"the order of the classes ({by[settings.classes_compared_by]})",
        f"the size ({size}) or the range of the images",
    ]
