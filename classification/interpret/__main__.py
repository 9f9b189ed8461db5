"""Show what representations hold (the paper's Figure 1) -> result.json, figure.png, pictures.

python -m classification.interpret --weights robust://resnet50_l2_eps0 robust://resnet50_l2_eps3 \\
    --data /data/imagenet --output output/interpret/imagenet
python -m classification.interpret --weights standard.pt robust.pt --dataset digits \\
    --judge third.pt --output output/interpret/digits
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

# torch, and what imports it, waits for `main`: --help is to come at once.
from classification.interpret import options as interpret_options
from robust_backbones.core import results
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.core.files import claimed, sha256

if TYPE_CHECKING:
    import torch

    from classification.datasets.split import ImageSplit
    from classification.interpret.plan import Plan
    from classification.models import Classifier
    from classification.progress import ProgressLine


def main(argv: list[str] | None = None) -> None:
    """Parse, make pictures, write. Exit code 2 and one line for user mistakes."""
    args = interpret_options.parser(__doc__).parse_args(argv)
    with user_errors():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    interpret_options.check(args)
    from robust_backbones import weights

    # Absolute: never taken for a published model's name.
    paths = [weights.resolve(each).absolute() for each in args.weights]
    paths = dict(zip(interpret_options.networks(args), paths, strict=True))
    judge_path = weights.resolve(args.judge).absolute() if hasattr(args, "judge") else None
    from classification import models
    from classification.interpret import plan as interpret_plan
    from classification.training.launch import choose_device

    source = _source(args)
    settings = _settings(args, paths, judge_path, source)
    if results.finished(args.output / "result.json", settings):
        return
    networks = {name: models.load_classifier(path) for name, path in paths.items()}
    judge = None if judge_path is None else models.load_classifier(judge_path)
    _check_judge(args, settings, networks, judge)
    _check_columns(args, networks)
    plan = interpret_plan.make(args, source, min(net.num_classes for net in networks.values()))
    device = choose_device(getattr(args, "device", None))
    with claimed(args.output):
        _work(args, plan, networks, judge, source, settings | {"device": str(device)}, device)


def _source(args: argparse.Namespace) -> "ImageSplit | None":
    """The test split; None where no image of it is needed."""
    if args.mode == "visualise" and args.start == "noise":
        return None
    from classification.datasets.open import open_images

    source = open_images(
        args.dataset,
        "test",
        getattr(args, "data", None),
        image_size=interpret_options.image_size(args),
    )
    return source


def _settings(
    args: argparse.Namespace,
    paths: dict[str, Path],
    judge: Path | None,
    source: "ImageSplit | None",
) -> dict:
    """All that decides the pictures and the numbers, in plain JSON types."""
    return {
        "networks": {name: sha256(path) for name, path in paths.items()},
        "judge": judge and sha256(judge),
        "mode": args.mode,
        "units": getattr(args, "units", None),
        "classes": getattr(args, "classes", None),
        "images": interpret_options.inverted(args),
        "start": args.start,
        "dataset": args.dataset if source else None,
        "fingerprint": source and source.fingerprint(),
        "image_size": interpret_options.image_size(args),
        "constraint": "l2",
        "eps": args.eps,
        "steps": args.steps,
        "step_size": interpret_options.step_size(args),
        "use_best": args.use_best,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }


def _check_judge(
    args: argparse.Namespace, settings: dict, networks: dict, judge: "Classifier | None"
) -> None:
    for name, network in networks.items():
        if judge and settings["judge"] == settings["networks"][name]:
            raise UserError(
                f"--judge {args.judge} is {name} itself, whose opinion of its own "
                "pictures says nothing; give one that makes none."
            )
        if judge and judge.num_classes != network.num_classes:
            raise UserError(
                f"--judge {args.judge} tells {judge.num_classes} classes apart, {name} "
                f"{network.num_classes}; give one of the same classes."
            )


def _check_columns(args: argparse.Namespace, networks: dict) -> None:
    for name, network in networks.items():
        counts = {"class": network.num_classes, "unit": network.head.in_features}
        for kind, number in interpret_options.columns(args, network.num_classes):
            if number >= counts[kind]:
                option = {"class": "--classes", "unit": "--units"}[kind]
                raise UserError(
                    f"{option} {number}: {name} has no such {kind}; its numbers are 0 "
                    f"to {counts[kind] - 1}."
                )


def _work(
    args: argparse.Namespace,
    plan: "Plan",
    networks: dict,
    judge: "Classifier | None",
    source: "ImageSplit | None",
    settings: dict,
    device: "torch.device",
) -> None:
    """Make all pictures, then write them and what they say."""
    from classification import progress
    from classification.interpret import figure as interpret_figure
    from classification.interpret import plan as interpret_plan
    from classification.interpret import report as interpret_report

    began = time.perf_counter()
    how = {name: settings[name] for name in ("eps", "steps", "step_size", "use_best")}
    line = progress.ProgressLine(len(networks) * plan.columns * args.steps)
    judge, found, rows = judge and judge.to(device), {}, {}
    for name, network in networks.items():
        network.to(device)
        found[name] = interpret_plan.pictures(
            network, plan, how, args.batch_size, functools.partial(_show, line, name)
        )
        rows[name] = interpret_report.measure(network, judge, plan, found[name], args.batch_size)
        network.cpu()  # one at a time on the device
    line.clear()
    interpret_figure.save(args.output, plan, found)
    interpret_figure.draw(args.output, plan, found)
    _write(args, rows, networks, source, settings, time.perf_counter() - began)


def _show(line: "ProgressLine", name: str, images: int, doing: str) -> None:
    line.show(images, f"{name}: {doing}")


def _write(
    args: argparse.Namespace,
    rows: dict,
    networks: dict,
    source: "ImageSplit | None",
    settings: dict,
    seconds: float,
) -> None:
    """Print and write the numbers; result.json comes last and marks the run as finished."""
    from classification.interpret import report as interpret_report

    print(interpret_report.table(rows))
    warnings = interpret_report.warnings(rows)
    for warning in warnings:
        print(f"warning: {warning['message']}", file=sys.stderr)
    data = (
        {
            "test": {
                "name": source.name,
                "images": len(source),
                "fingerprint": settings["fingerprint"],
            }
        }
        if source
        else {}
    )
    names = {
        "weights": dict(zip(rows, args.weights, strict=True)),
        "judge_weights": getattr(args, "judge", None),
        "archs": {name: network.arch for name, network in networks.items()},
    }
    results.write(
        args.output / "result.json",
        kind="interpret",
        metrics={"networks": rows},
        settings=settings | names,
        weights_sha256=next(iter(settings["networks"].values())),
        data=data,
        seed=args.seed,
        seconds=seconds,
        warnings=warnings,
    )
    print(f"networks: {len(rows)}, {seconds:.0f} s -> {args.output}")


if __name__ == "__main__":
    main()
