"""Options and defaults that depend on the dataset, which several commands share.

This module does not import torch, because command-line parsers import it.
"""

import argparse
from collections.abc import Callable

from classification.datasets.specs import DATA_VARIABLE, DATASETS, find_dataset
from robust_backbones.core import cli
from robust_backbones.core.errors import UserError


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
        f"${DATA_VARIABLE}; bundled datasets need none)",
    )


def dataset_name(text: str) -> str:
    """Convert the argument of `--dataset`.

    Raises:
        argparse.ArgumentTypeError: no dataset has this name.
    """
    try:
        return find_dataset(text).name
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def by_dataset(fact: str) -> str:
    """Describe a default that depends on the dataset, for the help.

    Args:
        fact: attribute of `DatasetSpec`.
    """
    return cli.by_kind({name: getattr(spec, fact) for name, spec in DATASETS.items()})


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
