"""The option for the location of a dataset, which several commands share.

This module does not import torch, because command-line parsers import it.
"""

from collections.abc import Callable

from classification.datasets.specs import DATA_VARIABLE, DATASETS
from robust_backbones.core import cli


def add_data(add: Callable) -> None:
    """Add `--data`.

    Args:
        add: `add_argument` of an option group.
    """
    add(
        "--data",
        type=cli.location,
        metavar="PATH",
        help="path of the dataset, folder with one folder per dataset, or URL of shards (default: "
        f"${DATA_VARIABLE}; embedded datasets need none)",
    )


def restrict_data(parser: cli.Parser) -> None:
    """Reject `--data` for datasets that are not read from files.

    Args:
        parser: parser with `--dataset` and `--data`.
    """
    parser.restrict(
        "--data",
        to="a --dataset that is read from files",
        when=lambda args: DATASETS[args.dataset].needs_root,
    )
