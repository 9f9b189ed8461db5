"""Convert a classifier checkpoint, by default to Detectron2 backbone weights, and verify it.

Examples:
  robust-backbones convert resnet50_l2_eps3.ckpt weights/resnet50_l2_eps3.pth
  robust-backbones convert SOURCE TARGET --to robustness
  robust-backbones convert --inspect FILE
"""

import argparse
from pathlib import Path

from robust_backbones.checkpoint import TARGET_SUFFIXES, check_target
from robust_backbones.core import input_statistics
from robust_backbones.core.cli import Parser, location
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.weights import fetch_weights


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "source",
        type=location,
        metavar="SOURCE",
        help="checkpoint (.pth, .pt, .ckpt, .safetensors, .pkl) of torchvision, timm, the "
        "robustness library, MoCo, Lightning, Detectron2 or our pretraining, or the name of a "
        "published model",
    )
    add("target", type=location, metavar="TARGET", nargs="?", help="file to write")
    add("--to", choices=TARGET_SUFFIXES, default="detectron2", help="format of TARGET")
    add(
        "--arch",
        metavar="NAME",
        help="expected architecture, compared with the tensors (default: detected)",
    )
    add(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the features of source and target at every stage (default: yes)",
    )
    add(
        "--key",
        metavar="NAME",
        help="network to read if SOURCE has several: name of an entry, or prefix of its keys",
    )
    add("--dry-run", action="store_true", help="print the new name of each key; write nothing")
    add("--inspect", action="store_true", help="describe SOURCE; write nothing")
    add(
        "--from-detector",
        action="store_true",
        help="extract the backbone of SOURCE, a Detectron2 detector",
    )
    add(
        "--assume-rgb",
        action="store_true",
        help="assume RGB images and STRIDE_IN_1X1 False if a Detectron2 SOURCE does not state them",
    )
    add(
        "--allow-pickle",
        action="store_true",
        help="execute code in SOURCE if it contains more than tensors; only for trusted files",
    )
    input_statistics.add_options(add)
    add("--force", action="store_true", help="overwrite TARGET")
    parser.restrict("--to", to="TARGET or --dry-run", when=lambda a: not a.inspect)
    args = parser.parse_args(argv)
    if not args.target and not (args.inspect or args.dry_run):
        parser.error("TARGET is missing. Give the file to write, or --inspect or --dry-run")
    if args.target and args.inspect:
        parser.error(f"--inspect writes no file. Remove '{args.target}'")
    if args.inspect and args.dry_run:
        parser.error("--inspect and --dry-run are mutually exclusive. Remove one of them")
    for option, given in (("--force", args.force), ("--no-verify", not args.verify)):
        if given and (args.inspect or args.dry_run):
            mode = "--inspect" if args.inspect else "--dry-run"
            parser.error(f"{mode} writes no file, so {option} has no effect. Remove {option}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Check the input, then convert, inspect or list the keys."""
    args = parse(argv)
    with user_errors():
        statistics = input_statistics.given(args)
        if args.target:
            check_target(args.target, args.to, args.force)
        path = fetch_weights(args.source)
        if args.target and Path(args.target).resolve() == Path(path).resolve():
            raise UserError(f"{args.target} is SOURCE itself. Choose another TARGET.")
        from robust_backbones.commands import conversion

        source = conversion.read(
            args.source,
            path,
            arch=args.arch,
            allow_pickle=args.allow_pickle,
            from_detector=args.from_detector,
            assume_rgb=args.assume_rgb,
            key=args.key,
            statistics=statistics,
        )
        if args.inspect:
            conversion.describe(source, args.source)
        elif args.dry_run:
            conversion.list_keys(source, args.source, args.to)
        else:
            conversion.convert(source, args.source, args.target, args.to, check=args.verify)
