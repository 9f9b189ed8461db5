"""Options that `attack` and `corrupt` share, and `KEY VALUE` pairs between options."""

import argparse
import re
import sys

from robust_backbones.core.cli import Parser, count, location, path, whole
from robust_backbones.core.dataset_forms import LAYOUTS, SYNTAX

# Pattern of config keys on a command line, such as MODEL.WEIGHTS and SEED.
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|OUTPUT_DIR|SEED")


# Options of other commands whose values are config keys of detectors.
INSTEAD = {
    option: f"Set the config key {key}: {key} {value}"
    for option, key, value in (
        ("--arch", "MODEL.ROBUST.ARCH", "NAME"),
        ("--batch-size", "SOLVER.IMS_PER_BATCH", "N"),
        ("--device", "MODEL.DEVICE", "NAME"),
        ("--epochs", "SOLVER.MAX_ITER", "ITERATIONS"),
        ("--eps", "SOLVER.ADVERSARIAL.EPS", "EPS"),
        ("--image-range", "INPUT.IMAGE_RANGE", '"[MIN, MAX]"'),
        ("--iterations", "SOLVER.MAX_ITER", "N"),
        ("--lr", "SOLVER.BASE_LR", "X"),
        ("--output", "OUTPUT_DIR", "DIR"),
        ("--precision", "SOLVER.PRECISION", "NAME"),
        ("--seed", "SEED", "N"),
        ("--weights", "MODEL.WEIGHTS", "FILE"),
        ("--workers", "DATALOADER.NUM_WORKERS", "N"),
    )
}


def parser(description: str) -> Parser:
    """Create a parser with the shared options."""
    shared = Parser(
        instead=INSTEAD,
        description=description,
        usage="%(prog)s --config FILE [options] [KEY VALUE ...]",
        epilog="KEY VALUE pairs change the config: MODEL.WEIGHTS mine.pth.\n"
        f"To continue an interrupted evaluation, repeat the command.\n\n{LAYOUTS}",
    )
    add = shared.add_argument
    add(
        "--config",
        "--config-file",
        dest="config",
        required=True,
        type=location,
        metavar="FILE",
        help="YAML file of the detector; MODEL.WEIGHTS must be a trained detector",
    )
    add(
        "--dataset",
        metavar="DATA",
        help=f"registered dataset, or {SYNTAX} (default: DATASETS.TEST)",
    )
    add(
        "--images",
        type=count,
        help="evaluate on N random images of the test set (default: all images)",
    )
    add("--batch-size", type=count, default=1, help="batch size per process")
    add(
        "--num-gpus",
        type=count,
        default=1,
        help="number of GPUs of this machine that share the images (default: 1)",
    )
    add(
        "--seed",
        type=whole,
        default=0,
        help="random seed for the choice of images and for the evaluation",
    )
    add(
        "--output",
        type=path,
        metavar="DIR",
        help="folder for the results (default: a folder in OUTPUT_DIR)",
    )
    return shared


def parse(shared: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options, and store the `KEY VALUE` pairs as `opts`.

    The pairs are removed from the command line first. Otherwise, an option with several values
    would consume the pairs.
    """
    rest, pairs = list(sys.argv[1:] if argv is None else argv), []
    index = 0
    while index < len(rest):
        if KEY.fullmatch(rest[index]):
            pairs += rest[index : index + 2]
            del rest[index : index + 2]
        else:
            index += 1
    args = shared.parse_args(rest)
    args.opts = pairs
    return args
