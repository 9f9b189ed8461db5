"""Measure clean and robust accuracy -> result.json, per_image.jsonl, curve.png.

python -m classification.robustness_eval --weights output/pretrain/digits_l2/checkpoint.pt \\
    --dataset digits --constraint l2 --eps 0.25 0.5 1.0 --output output/robustness/digits_l2
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# torch, and what imports it, waits for `main`: --help is to come at once.
from classification import options
from classification.datasets.specs import DATASETS
from classification.robustness_eval import plan as attack_plan
from robust_backbones.core import results
from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import STEP_FACTOR, check_eps
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.core.files import atomic, claimed, sha256

if TYPE_CHECKING:
    from classification.datasets.split import ImageSplit
    from classification.models import Classifier
    from classification.robustness_eval.plan import Attack

EPS = {"l2": [0.25, 0.5, 1.0], "linf": [2 / 255, 4 / 255, 8 / 255]}
JOURNAL = "state.jsonl"


def parser(description: str) -> Parser:
    p = Parser(
        "python -m classification.robustness_eval",
        description=description.split("\n")[0],
        epilog="A run that was stopped goes on where it was: give the same command again.",
    )
    add = p.add_argument
    add(
        "--weights",
        default=argparse.SUPPRESS,
        required=True,
        help="classifier: a path, a published name (resnet50_l2_eps3, robust://resnet50_l2_eps3) "
        "or a URL",
    )
    add("--dataset", choices=tuple(DATASETS), default="imagenet", help="its test split is used")
    add(
        "--data",
        default=argparse.SUPPRESS,
        help="where the dataset lies, if it is not embedded: a path (default: none)",
    )
    add(
        "--image-size",
        type=options.count,
        default=argparse.SUPPRESS,
        help="height and width of the images, pixels (default: the dataset's)",
    )
    add(
        "--images",
        type=options.count,
        default=argparse.SUPPRESS,
        help="size of a random subset chosen by --seed, a count (default: all images)",
    )
    add("--constraint", choices=tuple(EPS), default="l2", help="norm of the ball")
    add(
        "--eps",
        type=options.positive,
        nargs="+",
        default=argparse.SUPPRESS,
        help="radii, pixels in [0, 1] (L2: whole image); 4/255 is understood (default: 0.25 0.5 1 "
        "for l2, 2/255 4/255 8/255 for linf)",
    )
    add(
        "--steps",
        type=options.count,
        nargs="+",
        default=[20],
        help="steps of PGD, one or more counts; each step is 2.5*eps/steps long",
    )
    add(
        "--restarts",
        type=options.count,
        default=1,
        help="tries of PGD, each from its own random start, a count",
    )
    add(
        "--autoattack",
        action="store_true",
        help="AutoAttack too, at every radius: slow, some thousand passes per image; consider "
        "--images",
    )
    add("--batch-size", type=options.count, default=100, help="images at once, a count")
    add("--seed", type=options.seed, default=0, help="of the attacks and the subset, a number")
    add(
        "--device",
        default=argparse.SUPPRESS,
        help="torch device (default: cuda if there is one, else cpu)",
    )
    add(
        "--workers",
        type=options.whole,
        default=0,
        help="processes that read images; 0: none but this one",
    )
    add(
        "--output",
        type=Path,
        default=argparse.SUPPRESS,
        required=True,
        help="folder for this run, a path",
    )
    return p


def main(argv: list[str] | None = None) -> None:
    """Parse, attack, write. Exit code 2 and one line for user mistakes."""
    args = parser(__doc__).parse_args(argv)
    with user_errors():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    radii = sorted(set(getattr(args, "eps", EPS[args.constraint])))
    for eps in radii:
        check_eps("--eps", args.constraint, eps)
    from robust_backbones import weights

    path = weights.resolve(args.weights).absolute()  # absolute: never taken for a model's name
    from classification import models
    from classification.datasets.open import open_images
    from classification.robustness_eval import autoattack
    from classification.training.launch import choose_device

    if args.autoattack:
        autoattack.package()  # a missing one is told of now, not after hours of PGD
    source = open_images(
        args.dataset,
        "test",
        getattr(args, "data", None),
        image_size=getattr(args, "image_size", None),
    )
    chosen = _chosen(len(source), getattr(args, "images", len(source)), args.seed)
    settings = _settings(args, radii, source, len(chosen), sha256(path))
    if results.finished(args.output / "result.json", settings):
        return
    model = models.load_classifier(path)
    _check_classes(args.weights, model, source)
    device = choose_device(getattr(args, "device", None))
    shape = (3, source.image_size, source.image_size)
    plan = attack_plan.make(
        args.constraint, radii, settings["steps"], args.restarts, settings["autoattack"], shape
    )
    with claimed(args.output):
        found = _attack(model.to(device), source, chosen, plan, args, settings)
        _write(args, found, source, chosen, settings | {"device": str(device)})


def _chosen(total: int, wanted: int, seed: int) -> list[int]:
    """Numbers of the images to use, sorted."""
    import torch

    if wanted > total:
        raise UserError(f"--images is {wanted}, but there are {total}; give at most {total}.")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:wanted].sort().values.tolist()


def _settings(
    args: argparse.Namespace, radii: list[float], source: "ImageSplit", images: int, digest: str
) -> dict:
    """All that decides the numbers of the run, in plain JSON types."""
    return {
        "weights_sha256": digest,
        "dataset": source.name,
        "fingerprint": source.fingerprint(),
        "image_size": source.image_size,
        "images": images,
        "constraint": args.constraint,
        "eps": radii,
        "steps": sorted(set(args.steps)),
        "step_size": f"{STEP_FACTOR} * eps / steps",
        "restarts": args.restarts,
        "random_start": True,
        "use_best": True,
        "autoattack": list(attack_plan.parts(source.classes)) if args.autoattack else [],
        "batch_size": args.batch_size,
        "seed": args.seed,
    }


def _check_classes(weights: str, model: "Classifier", source: "ImageSplit") -> None:
    if model.num_classes != source.classes:
        raise UserError(
            f"{weights} tells {model.num_classes} classes apart, {source.name} has "
            f"{source.classes}; choose another --dataset, or train a model for this one."
        )


def _attack(
    model: "Classifier",
    source: "ImageSplit",
    chosen: list[int],
    plan: "list[Attack]",
    args: argparse.Namespace,
    settings: dict,
) -> list:
    """Go through all images, on from where the folder's journal ends; the outcomes."""
    from classification import progress
    from classification.datasets import loader
    from classification.journal import Journal
    from classification.robustness_eval import run as robustness

    journal = Journal(args.output / JOURNAL, settings)
    batches = -(-len(chosen) // args.batch_size)
    done = robustness.complete(plan, journal.records, batches)
    if journal.records:
        print(f"resuming after batch {done} of {batches}", flush=True)
    rest = chosen[done * args.batch_size :]
    line = progress.ProgressLine(len(chosen), len(chosen) - len(rest))
    robustness.run(
        model,
        loader.test_batches(source.subset(rest), args.batch_size, workers=args.workers),
        plan,
        seed=args.seed,
        classes=source.classes,
        records=journal.records,
        add=journal.add,
        first_batch=done,
        progress=line.show,
    )
    line.clear()
    return robustness.outcomes(plan, journal.records)


def _write(
    args: argparse.Namespace, found: list, source: "ImageSplit", chosen: list[int], settings: dict
) -> None:
    """Draw, print and write it all; result.json comes last and marks the run as finished."""
    from classification.robustness_eval import checks as sanity
    from classification.robustness_eval import report as robustness_report

    rows = robustness_report.rows(found)
    warnings = sanity.warnings(found, source.classes)
    print(robustness_report.table(rows))
    for warning in warnings:
        print(f"warning: {warning['message']}", file=sys.stderr)
    with atomic(args.output / "per_image.jsonl") as temporary:
        lines = robustness_report.per_image(found, chosen)
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    robustness_report.draw(rows, args.output / "curve.png")
    seconds = sum(outcome.seconds for outcome in found)
    results.write(
        args.output / "result.json",
        kind="robustness",
        metrics={"clean_top1": rows["clean"]["accuracy"], "attacks": rows},
        settings=settings | {"weights": args.weights},
        weights_sha256=settings["weights_sha256"],
        data={
            "test": {
                "name": source.name,
                "images": len(chosen),
                "fingerprint": settings["fingerprint"],
            }
        },
        seed=args.seed,
        seconds=seconds,
        warnings=warnings,
    )
    (args.output / JOURNAL).unlink()
    print(f"{len(chosen)} images, {seconds:.0f} s -> {args.output}")


if __name__ == "__main__":
    main()
