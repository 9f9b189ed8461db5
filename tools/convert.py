#!/usr/bin/env python
"""Convert a classifier checkpoint into Detectron2 backbone weights, and prove it.

tools/convert.py resnet50_l2_eps3.ckpt weights/resnet50_l2_eps3.pth
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

from robust_backbones.errors import UserError, user_errors
from robust_backbones.zoo import ARCHS


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    add = parser.add_argument
    add("source", metavar="SOURCE",
        help="checkpoint of torchvision, the robustness library, or classification.pretrain")
    add("target", metavar="TARGET", help="file to write, ending in .pth")
    add("--arch", metavar="NAME",
        help=f"what the source should be, checked against its tensors: {', '.join(ARCHS)} "
             "(default: recognised)")
    add("--verify", action=argparse.BooleanOptionalAction, default=True,
        help="compare the features of source and target, stage by stage (default: yes)")
    add("--allow-pickle", action="store_true",
        help="execute code in SOURCE if it holds more than tensors; only for files that you trust")
    add("--force", action="store_true", help="replace TARGET if it exists")
    # fmt: on
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Read, rename, verify, write; say what happened to every kind of key."""
    target = Path(args.target)
    if target.suffix != ".pth":
        raise UserError(f"target '{target}' must end in .pth, which Detectron2 loads safely.")
    if target.exists() and not args.force:
        raise UserError(f"{target} exists; pass --force to replace it.")
    from robust_backbones import checkpoint, convert

    source = checkpoint.read(args.source, args.arch, args.allow_pickle)
    contents = convert.detectron2_contents(source)
    print(f"{args.source}: {source.arch}, {source.layout} layout, sha256 {source.sha256[:16]}...")
    if args.verify:
        from robust_backbones.detection.verify import verify

        differences = verify(source, contents["model"])
        text = ", ".join(f"{stage} {value:.1e}" for stage, value in differences.items())
        print(f"verified, largest relative difference of features: {text}")
    _, dropped = convert.to_detectron2(source.tensors)
    for reason in sorted(set((source.dropped | dropped).values())):
        count = list((source.dropped | dropped).values()).count(reason)
        print(f"dropped {count}: {reason}")
    checkpoint.save(contents, target)
    print(f"wrote {target}: {len(contents['model'])} tensors")


def main(argv=None) -> None:
    """Convert; user mistakes are one line and exit code 2."""
    args = parse(argv)
    with user_errors():
        convert(args)


if __name__ == "__main__":
    main()
