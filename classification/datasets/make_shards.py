"""Pack an image folder into WebDataset shards for pretraining.

Examples:
  robust-backbones make-shards FOLDER OUTPUT --images-per-shard 1000
"""

import argparse

from classification.datasets.folders import find_layout
from classification.datasets.label_tables import is_table
from robust_backbones.core.cli import Parser, count, path
from robust_backbones.core.errors import user_errors


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "folder",
        metavar="FOLDER",
        type=path,
        help="folder with train/<class>/<image>, and optionally test/... or val/...; class folders "
        "without splits; or a CSV file of names and labels",
    )
    add("output", metavar="OUTPUT", type=path, help="folder for the shards")
    add(
        "--images-per-shard",
        type=count,
        default=1000,
        help="images in a shard; choose N so that each data-loading worker of each process "
        "gets at least one training shard",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the shards and print the `--data` option to use for training."""
    args = parse(argv)
    with user_errors():
        if not is_table(args.folder):
            find_layout(args.folder)  # report a wrong folder before importing torch
        from classification.datasets.shard_writer import write_shards

        index = write_shards(args.folder, args.output, args.images_per_shard)
        print(f"pass --data {index}")
