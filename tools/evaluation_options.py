"""Options that attack_net.py and corrupt_net.py share. Imports no torch: --help comes at once."""

import argparse
import re
import sys
from pathlib import Path

from robust_backbones.core.cli import Parser, count, whole

# A configuration key as people write it on a command line: MODEL.WEIGHTS, SEED.
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|OUTPUT_DIR|SEED")


def parser(description: str) -> Parser:
    """What both have."""
    made = Parser(
        description=description,
        usage="%(prog)s --config FILE [options] [KEY VALUE ...]",
        epilog="KEY VALUE pairs, anywhere, override the configuration: MODEL.WEIGHTS mine.pth.\n"
        "Stopped, it goes on where it was: give the same command again.",
    )
    add = made.add_argument
    add(
        "--config",
        "--config-file",
        dest="config",
        required=True,
        metavar="FILE",
        help="YAML file of the detector; MODEL.WEIGHTS must be a trained one",
    )
    add(
        "--images",
        type=count,
        metavar="N",
        help="a random subset of the test set, chosen by --seed (default: all images)",
    )
    add(
        "--batch-size",
        type=count,
        default=1,
        metavar="N",
        help="images at once (default: 1, as in Detectron2's tests)",
    )
    add(
        "--seed",
        type=whole,
        default=0,
        metavar="K",
        help="of the subset and of all random changes (default: 0)",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for this evaluation (default: a folder in OUTPUT_DIR)",
    )
    return made


def parse(made: Parser, argv=None) -> argparse.Namespace:
    """The options, and the `KEY VALUE` pairs as `opts`. Options that take several values would
    swallow the pairs behind them, hence these are taken out first."""
    rest, pairs = list(sys.argv[1:] if argv is None else argv), []
    place = 0
    while place < len(rest):
        if KEY.fullmatch(rest[place]):
            pairs += rest[place : place + 2]
            del rest[place : place + 2]
        else:
            place += 1
    args = made.parse_args(rest)
    args.opts = pairs
    return args
