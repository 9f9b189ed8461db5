"""Draw annotations and detections side by side, sort errors by kind, draw training curves.

Examples:
  robust-backbones visualize --output DIR --config C MODEL.WEIGHTS W
  robust-backbones visualize --output DIR --config C MODEL.WEIGHTS W --compare OTHER_WEIGHTS
  robust-backbones visualize --output DIR --dataset NAME --predictions coco_instances_results.json
  robust-backbones visualize --output DIR --dataset NAME --truth-only
  robust-backbones visualize --output DIR --curves RUN_FOLDER RUN_FOLDER

Writes DIR/index.html and its pictures, with --errors also DIR/errors.json. --curves writes
DIR/curves.png.
"""

import argparse

from robust_backbones.commands.detector_options import INSTEAD
from robust_backbones.core.cli import Parser, count, location, path, proportion, whole
from robust_backbones.core.dataset_forms import LAYOUTS, SYNTAX
from robust_backbones.core.errors import user_errors
from robust_backbones.core.resources import require_config


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(instead=INSTEAD, description=__doc__, epilog=LAYOUTS)
    add = parser.add_argument
    add(
        "--output",
        required=True,
        type=path,
        metavar="DIR",
        help="folder for the page and the pictures",
    )
    add(
        "--config",
        "--config-file",
        dest="config",
        type=location,
        metavar="FILE",
        help="config of a trained detector, whose weights are MODEL.WEIGHTS",
    )
    add(
        "--dataset",
        metavar="DATA",
        help=f"registered dataset, or {SYNTAX} (default: the first of DATASETS.TEST)",
    )
    add(
        "--compare",
        type=_split_config,
        metavar="[CONFIG=]WEIGHTS",
        help="second detector, by default with the same config; KEY VALUE pairs apply to both",
    )
    add(
        "--predictions",
        type=location,
        action="append",
        default=[],
        metavar="FILE",
        help="draw the detections in one or two coco_instances_results.json files instead of "
        "running a detector",
    )
    add("--truth-only", action="store_true", help="draw only the annotations")
    add(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="headings for the first and second detections (default: their paths)",
    )
    add("--images", type=count, default=20, help="number of random images")
    add("--seed", type=whole, default=0, help="random seed for the choice of images")
    add(
        "--threshold",
        type=proportion,
        default=0.5,
        help="lowest score of a drawn detection, in [0, 1]",
    )
    add(
        "--errors",
        action="store_true",
        help="classify errors as TIDE does: colors, a table, and errors.json",
    )
    add(
        "--sort",
        choices=("dataset", "errors"),
        default="dataset",
        help="order of the images; errors: images with the most errors first",
    )
    add("--show", type=count, help="draw the first N images (default: all)")
    add(
        "--curves",
        nargs="+",
        type=location,
        metavar="DIR",
        help="draw the training curves of these runs",
    )
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    if not args.curves and (conflict := _conflict(args)):
        parser.error(conflict)
    return args


def _conflict(args: argparse.Namespace) -> str | None:
    """Return an error message if the combination of options is invalid, else None."""
    config = args.compare and args.compare[0]
    conflicts = {
        "--sort errors needs --errors": args.sort == "errors" and not args.errors,
        "--truth-only cannot be combined with --compare, --predictions or --errors": args.truth_only
        and (args.compare or args.predictions or args.errors),
        "give --config and MODEL.WEIGHTS, or --predictions, or --truth-only": not (
            args.config or args.predictions or args.truth_only
        ),
        "--compare needs --config, or CONFIG=WEIGHTS": args.compare and not (args.config or config),
        "give --dataset or --config": not (args.config or args.dataset),
    }
    return next((text for text, wrong in conflicts.items() if wrong), None)


def _split_config(text: str) -> tuple[str | None, str]:
    """Split `[CONFIG=]WEIGHTS`. The config is None if it is missing.

    The path of the weights may contain an equals sign.
    """
    for ending in (".yaml=", ".yml="):
        config, found, weights = text.partition(ending)
        if found:
            return location(config + ending[:-1]), location(weights)
    return None, location(text)


def main(argv: list[str] | None = None) -> None:
    """Draw the page or the figure, and print its address."""
    args = parse(argv)
    with user_errors():
        if args.config:
            require_config(args.config)
        from robust_backbones.detection.inspect import page

        if args.curves:
            file = page.draw_curves(args.curves, args.output)
        else:
            view = page.View(
                args.output,
                args.config,
                args.opts,
                args.dataset,
                args.predictions,
                args.compare,
                truth_only=args.truth_only,
                names=args.name,
                images=args.images,
                seed=args.seed,
                threshold=args.threshold,
                errors=args.errors,
                most_errors_first=args.sort == "errors",
                shown=args.show,
            )
            file = page.draw_images(view)
        print(file.resolve().as_uri())
