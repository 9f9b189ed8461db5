#!/usr/bin/env python
"""Put an image folder into WebDataset shards for classification.pretrain.

tools/make_shards.py FOLDER OUT --images-per-shard 1000
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

from classification import options
from classification.datasets.folders import split_folder
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import user_errors


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        help="train/<class>/<image>, and test/... or val/... if there is one",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="folder to write to; see docs/data.md"
    )
    parser.add_argument(
        "--images-per-shard",
        type=options.count,
        default=1000,
        metavar="N",
        help="a count of at least 1 (default: %(default)s); have at least as many training shards "
        "as processes x workers that will read them",
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Parse, write, say where."""
    args = parse(argv)
    with user_errors():
        split_folder(args.folder, "train")  # before torch is imported
        from classification.datasets.shard_writer import write_shards

        index = write_shards(args.folder, args.out, args.images_per_shard)
        print(f"pass --data {index}")


if __name__ == "__main__":
    main()
