#!/usr/bin/env python
"""Convert a classifier checkpoint, by default into Detectron2 backbone weights, and prove it.

tools/convert.py resnet50_l2_eps3.ckpt weights/resnet50_l2_eps3.pth
tools/convert.py SOURCE TARGET --to robustness
tools/convert.py --inspect FILE
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

from robust_backbones import zoo
from robust_backbones.checkpoint import TARGET_SUFFIXES
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__)

    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="checkpoint (.pth, .pt, .ckpt, .safetensors, .pkl) of torchvision, timm, the "
        "robustness library, MoCo, Detectron2 or classification.pretrain; or the name of a "
        "published model",
    )
    add("target", metavar="TARGET", nargs="?", help="file to write")
    add(
        "--to",
        choices=TARGET_SUFFIXES,
        default="detectron2",
        help="format of TARGET (default: %(default)s)",
    )
    add(
        "--arch",
        metavar="NAME",
        help="what SOURCE should be, checked against its tensors (default: recognised)",
    )
    add(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the features of source and target, stage by stage (default: yes)",
    )
    add("--dry-run", action="store_true", help="print what becomes of each key; write nothing")
    add("--inspect", action="store_true", help="say what SOURCE is; write nothing")
    add(
        "--from-detector",
        action="store_true",
        help="SOURCE is a whole Detectron2 detector: take its backbone out",
    )
    add(
        "--assume-rgb",
        action="store_true",
        help="a Detectron2 SOURCE that does not say so takes RGB images, with STRIDE_IN_1X1 False",
    )
    add(
        "--allow-pickle",
        action="store_true",
        help="execute code in SOURCE if it holds more than tensors; only for files that you trust",
    )
    add("--force", action="store_true", help="replace TARGET if it exists")

    args = parser.parse_args(argv)
    if not args.target and not (args.inspect or args.dry_run):
        parser.error("TARGET is missing; give the file to write, or --inspect or --dry-run")
    if args.target and args.inspect:
        parser.error(f"--inspect looks at one file and writes none; leave '{args.target}' out")
    return args


def check_target(args: argparse.Namespace) -> None:
    """Refuse a target that cannot be, before any work."""
    target, suffixes = Path(args.target), TARGET_SUFFIXES[args.to]
    if target.suffix not in suffixes:
        endings = " or ".join(suffixes)
        raise UserError(f"target '{target}' must end in {endings} for --to {args.to}.")
    if target.is_dir():
        raise UserError(f"{target} is a folder; give the name of a file.")
    if target.exists() and not args.force:
        raise UserError(f"{target} exists; pass --force to replace it.")


def inspect(source, name: str) -> None:
    """What a file is."""
    rows = {
        "file": name,
        "sha256": source.sha256,
        "layout": source.layout,
        "architecture": source.arch,
        "tensors": f"{len(source.tensors)} of the network, {len(source.dropped)} others",
        "parameters and statistics": f"{sum(t.numel() for t in source.tensors.values()):,}",
        "mean": source.mean or "none in the file",
        "std": source.std or "none in the file",
    } | {f"its {key}": value for key, value in source.metadata.items()}
    for key, value in rows.items():
        print(f"{key}: {value}")


def print_plan(source, contents: dict, to: str) -> None:
    """What each key becomes, what is dropped and why."""
    from robust_backbones.checkpoint.key_names import detectron2_name

    written = contents.get("model", contents)
    keys = {}  # the tensors of the target are those of the source
    for key, tensor in written.items():
        keys.setdefault(tensor.data_ptr(), []).append(key)
    dropped = dict(source.dropped)
    for name, tensor in source.tensors.items():
        if to == "detectron2" and not detectron2_name(name)[0]:
            dropped[name] = detectron2_name(name)[1]
        else:
            print(f"{name} -> {', '.join(keys[tensor.data_ptr()])} {tuple(tensor.shape)}")
    for name, reason in dropped.items():
        print(f"{name} dropped: {reason}")


def print_dropped(source, to: str) -> None:
    """How many keys are not in the target, by reason."""
    from robust_backbones.checkpoint.key_names import to_detectron2

    dropped = source.dropped
    if to == "detectron2":
        dropped = dropped | to_detectron2(source.tensors)[1]
    reasons = list(dropped.values())
    for reason in sorted(set(reasons)):
        print(f"dropped {reasons.count(reason)}: {reason}")


def prove(source, contents: dict, to: str) -> None:
    """Compare the features of source and target; say by how much they differ."""
    from robust_backbones.checkpoint import formats as layouts
    from robust_backbones.checkpoint import verify

    if to == "detectron2":
        from robust_backbones.detection.verify import verify_backbone

        differences = verify_backbone(source, contents["model"])
    else:
        image = verify.fixed_image()
        again = layouts.unwrap(contents, "the converted file").tensors
        both = (verify.network_features(source.arch, t, image) for t in (source.tensors, again))
        differences = verify.compare_features(*both)
        if any(not again[name].equal(tensor) for name, tensor in source.tensors.items()):
            raise UserError("a tensor of the target differs from the source's.")
    text = ", ".join(f"{stage} {value:.1e}" for stage, value in differences.items())
    print(f"verified, largest relative difference of features: {text}")


def convert(args: argparse.Namespace) -> None:
    """Read, rename, verify, write; say what happened to every kind of key."""
    if args.target:
        check_target(args)
    from robust_backbones import weights

    path = weights.resolve(args.source)
    from robust_backbones.checkpoint.export import TARGETS
    from robust_backbones.checkpoint.io import (
        read_checkpoint,  # torch: seconds that a mistake need not wait for
    )

    model = None if Path(args.source).is_file() else zoo.known(args.source)
    arch = args.arch or (model.arch if model else None)
    source = read_checkpoint(path, arch, args.allow_pickle, args.from_detector, args.assume_rgb)
    if model:
        source = dataclasses.replace(source, metadata=source.metadata | model.facts)
    if source.mean is None:
        print("mean and std are not in the file: ImageNet's are assumed")
    if args.inspect:
        inspect(source, args.source)
        return
    target = TARGETS[args.to]
    contents = target.contents(source)
    print(f"{args.source}: {source.arch}, {source.layout} layout, sha256 {source.sha256[:16]}...")
    if args.dry_run:
        print_plan(source, contents, args.to)
        return
    if args.verify:
        prove(source, contents, args.to)
    print_dropped(source, args.to)
    target.write(contents, args.target)
    print(f"wrote {args.target}: {len(contents.get('model', contents))} tensors")


def main(argv=None) -> None:
    """Convert; user mistakes are one line and exit code 2."""
    args = parse(argv)
    with user_errors():
        convert(args)


if __name__ == "__main__":
    main()
