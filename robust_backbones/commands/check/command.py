"""Check the installation, the correctness and speed of a device, and published weights.

Examples:
  robust-backbones check
  robust-backbones check --device cuda --output check.json
  robust-backbones check --online --imagenet /data/imagenet

Every step prints one line: ok, FAILED with cause and fix, slow, or skipped. The exit code is 1 if a
step failed. Without options, the check needs no network and less than a minute on a CPU. --device
cuda takes at most ten minutes. --device cpu measures the same with small networks.
"""

import argparse
from pathlib import Path

from robust_backbones import zoo
from robust_backbones.commands.check.rows import ROWS
from robust_backbones.core.cli import Parser, location, path, positive, whole
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.core.files import check_folder

# The smallest published model that Detectron2 can use.
WEIGHTS = f"{zoo.SCHEME}resnet18_l2_eps3"


def _images(text: str) -> int | None:
    return None if text == "all" else whole(text) or None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--online",
        action="store_true",
        help="also fetch published weights, compare them with the table of published models, and "
        "print a report to paste into an issue",
    )
    add(
        "--weights",
        type=location,
        default=WEIGHTS,
        help="weights to check: a published name (robust://resnet50_l2_eps3), "
        "hf://OWNER/REPO/FILE, a URL or a path",
    )
    add(
        "--imagenet",
        type=path,
        metavar="DIR",
        help="ImageNet folder with val/<class>/<image>, or its folder val. The accuracy of the "
        "weights is measured on it and compared with the published one (default: not measured)",
    )
    add(
        "--images",
        type=_images,
        metavar="N",
        default=5000,
        help="measure the accuracy on N images, balanced over the classes; 0 or all: on all images",
    )
    add(
        "--device",
        choices=("cuda", "cpu"),
        help="also measure correctness, speed and memory of this device",
    )
    add(
        "--rows",
        nargs="+",
        choices=ROWS,
        metavar="ROW",
        help="rows to measure (default: all): "
        + ", ".join(f"{name} ({row.title})" for name, row in ROWS.items()),
    )
    add(
        "--budget",
        type=positive,
        default=600,
        metavar="SECONDS",
        help="time limit for all rows. Rows that do not finish in time are skipped",
    )
    add(
        "--output",
        type=path,
        metavar="FILE",
        help="JSON file for the results, without user names or home folders. It is written after "
        "each step",
    )
    parser.restrict("--weights", "--imagenet", to="--online", when=lambda a: a.online)
    parser.restrict("--rows", "--budget", to="--device", when=lambda a: a.device)
    parser.restrict("--images", to="--imagenet", when=lambda a: a.imagenet)
    return parser.parse_args(argv)


def _check_arguments(args: argparse.Namespace) -> None:
    """Check names and paths before the slow steps.

    Raises:
        UserError: the published model is unknown or is not a ResNet, or a path is invalid.
    """
    name = args.weights
    if name.startswith(zoo.SCHEME):
        zoo.find_backbone(name)
    elif not ("://" in name or Path(name).exists()):
        try:
            zoo.find_backbone(name)
        except UserError as error:
            raise UserError(f"--weights {name}: no file has this path. {error}") from None
    if args.imagenet and not args.imagenet.is_dir():
        raise UserError(f"--imagenet {args.imagenet} is not a folder. Give ImageNet's folder.")
    if args.output and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder. Give the name of a JSON file.")
    if args.output:
        check_folder(args.output.parent)


def main(argv: list[str] | None = None) -> int:
    """Run the steps. Return 1 if a step failed, else 0."""
    args = parse(argv)
    with user_errors():
        _check_arguments(args)
        from robust_backbones.commands.check import run

        plan = run.Plan(
            args.weights if args.online else None,
            args.imagenet,
            args.images,
            args.device,
            tuple(args.rows or ROWS),
            args.budget,
        )
        failed = run.run(plan, args.output)
    return int(failed > 0)
