"""The command `python -m classification.datasets`: list, check and fetch datasets."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# torch, and what imports it, waits for a command that needs it.
from classification.datasets import DATA, DATASETS, METRICS, find
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors

COLUMNS = (
    "dataset",
    "what",
    "classes",
    "train / test images",
    "metric",
    "split",
    "size",
    "augmentation",
    "fetch",
    "licence",
)


def _list(args: argparse.Namespace) -> None:
    if args.markdown:
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for name in DATASETS:
            print(f"| `{name}` | {' | '.join(_cells(name))} |")
        return
    print(f"{'name':17} {'classes':>7} {'train':>8} {'test':>6} {'metric':15} {'fetch':12} what")
    for name, row in DATASETS.items():
        train, test = (row.images.get(split, "any") for split in ("train", "test"))
        print(
            f"{name:17} {row.classes or 'any':>7} {train:>8} {test:>6} "
            f"{METRICS[row.metric]:15} {_way(name):12} {row.title}"
        )


def _cells(name: str) -> list[str]:
    row = DATASETS[name]
    title = f"[{row.title}]({row.source})" if row.source else row.title
    images = " / ".join(str(n) for n in row.images.values()) or "yours"
    images += "" if row.exact else " (only warns)"
    return [
        title,
        str(row.classes or "yours"),
        images,
        METRICS[row.metric],
        row.rule,
        str(row.image_size),
        f"`{row.augmentation}`",
        _way(name),
        row.licence,
    ]


def _way(name: str) -> str:
    row = DATASETS[name]
    return "embedded" if not row.needs_root else "torchvision" if row.torchvision else "by hand"


def _check(args: argparse.Namespace) -> None:
    from classification.datasets import check as dataset_check

    reports = []
    for name in args.names:
        reports.append(dataset_check.check(name, args.root))
        print(*dataset_check.lines(reports[-1]), sep="\n", flush=True)
    if args.report:
        dataset_check.write(args.report, reports)
    bad = [report.name for report in reports if not report.usable]
    if bad:
        raise UserError(f"cannot be used as it is: {', '.join(bad)}; see above.")


def _fetch(args: argparse.Namespace) -> None:
    from classification.datasets import fetch as dataset_fetch

    failed = []
    for name in args.names:
        try:
            print(dataset_fetch.fetch(name, args.root), flush=True)
        except UserError as error:  # the next one may be had
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise UserError(f"not fetched: {', '.join(failed)}; see above.")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m classification.datasets", description="The datasets of classifiers."
    )

    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="names, sizes, metrics, and how to get them")
    command.add_argument("--markdown", action="store_true", help="the table of docs/data.md")
    command.set_defaults(run=_list, names=[])
    command = commands.add_parser("check", help="look at every image; exit code 2 if unusable")
    _add_names(command, "the folder of the dataset, or the folder that has one for each dataset")
    command.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write all findings: JSON, or CSV if it ends in .csv",
    )
    command.set_defaults(run=_check)
    command = commands.add_parser("fetch", help="download, or say where the files are")
    _add_names(command, "the folder that has, or gets, a folder for each dataset")
    command.set_defaults(run=_fetch)

    return parser.parse_args(argv)


def _add_names(command: Parser, root: str) -> None:
    command.add_argument("names", metavar="NAME", nargs="+", help="see list")
    command.add_argument(
        "--root",
        "--data",
        type=Path,
        metavar="DIR",
        default=os.environ.get(DATA) or None,
        help=f"{root} (default: ${DATA})",
    )


def main(argv: list[str] | None = None) -> None:
    """Run one command; user mistakes are one line and exit code 2."""
    args = parse(argv)
    with user_errors():
        for name in args.names:  # a wrong name fails before the first long look
            if find(name).needs_root and args.root is None:
                raise UserError(f"say where {name} lies: --root DIR, or set {DATA}.")
        args.run(args)


if __name__ == "__main__":
    main()
