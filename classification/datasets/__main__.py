"""List, check and download datasets.

Examples:
  robust-backbones datasets list
  robust-backbones datasets check dtd cars --data /data
  robust-backbones datasets fetch dtd pets --data /data
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from classification.datasets.specs import (
    DATA_VARIABLE,
    DATASETS,
    METRIC_TITLES,
    DatasetSpec,
    find_dataset,
)
from robust_backbones.core import cli
from robust_backbones.core.cli import Parser, add_command, add_image_range
from robust_backbones.core.errors import UserError, user_errors

# Columns of the tables in docs/reference/datasets.md. One table of all columns is too wide.
TABLES = (
    ("dataset", "title", "classes", "train / test images", "metric", "split"),
    ("dataset", "size", "augmentation", "fetch", "license"),
)


def _list(markdown: bool) -> None:
    if markdown:
        print("\n\n".join(map(_table, TABLES)))
        return
    print(f"{'name':17} {'classes':>7} {'train':>8} {'test':>6} {'metric':15} {'fetch':12} title")
    for spec in DATASETS.values():
        train, test = (spec.images.get(split, "any") for split in ("train", "test"))
        print(
            f"{spec.name:17} {spec.classes or 'any':>7} {train:>8} {test:>6} "
            f"{METRIC_TITLES[spec.metric]:15} {_how_to_fetch(spec):12} {spec.title}"
        )


def _table(columns: tuple[str, ...]) -> str:
    """Return a Markdown table of all datasets with these columns."""
    rows = [columns, *([_cells(spec)[c] for c in columns] for spec in DATASETS.values())]
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(columns)}", *body])


def _cells(spec: DatasetSpec) -> dict[str, str]:
    images = " / ".join(str(n) for n in spec.images.values()) or "yours"
    return {
        "dataset": f"`{spec.name}`",
        "title": f"[{spec.title}]({spec.homepage})" if spec.homepage else spec.title,
        "classes": str(spec.classes or "yours"),
        "train / test images": images + ("" if spec.exact_counts else " (others: warning)"),
        "metric": METRIC_TITLES[spec.metric],
        "split": spec.split_rule,
        "size": str(spec.image_size),
        "augmentation": f"`{spec.augmentation}`",
        "fetch": _how_to_fetch(spec),
        "license": spec.license,
    }


def _how_to_fetch(spec: DatasetSpec) -> str:
    if not spec.needs_root:
        return "bundled"
    return "torchvision" if spec.torchvision else "manual"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    command = add_command(
        commands,
        "list",
        "print sizes, metrics, licenses and sources",
        "robust-backbones datasets list",
    )
    command.add_argument(
        "--markdown", action="store_true", help="print all facts as a Markdown table"
    )
    command.set_defaults(names=[])
    command = add_command(
        commands,
        "check",
        "decode every image and report problems; exit code 2 if data is unusable",
        "robust-backbones datasets check dtd cars --data /data",
    )
    _add_names(
        command, "folder of the dataset, or folder with one folder per dataset", cli.location
    )
    add_image_range(command.add_argument)
    command.add_argument(
        "--output",
        type=cli.path,
        metavar="FILE",
        help="file for all findings, CSV if it ends in .csv, else JSON",
    )
    command = add_command(
        commands,
        "fetch",
        "download, or explain where to find the files",
        "robust-backbones datasets fetch dtd pets --data /data",
    )
    _add_names(command, "folder with one folder per dataset")
    return parser.parse_args(argv)


def _add_names(command: Parser, data: str, kind: Callable = cli.path) -> None:
    command.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help="names of datasets; see robust-backbones datasets list",
    )
    command.add_argument(
        "--data",
        type=kind,
        metavar="DIR",
        default=os.environ.get(DATA_VARIABLE) or None,
        help=f"{data} (default: ${DATA_VARIABLE})",
    )


def main(argv: list[str] | None = None) -> None:
    """Run one command. Invalid input prints one line and exits with code 2."""
    args = parse(argv)
    with user_errors():
        for name in args.names:  # report a missing path before the first long check
            if find_dataset(name).needs_root and args.data is None:
                raise UserError(
                    f"dataset '{name}' needs data, and no path was given. Pass --data DIR, or set "
                    f"{DATA_VARIABLE}."
                )
        if args.command == "list":
            _list(args.markdown)
            return
        from classification.datasets.run import run  # imports torch, which takes seconds

        run(args)


if __name__ == "__main__":
    main()
