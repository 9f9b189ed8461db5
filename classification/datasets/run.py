"""Run `check` and `fetch` for several datasets."""

import argparse
import sys

from classification.datasets.check import check_dataset, lines, write_report
from classification.datasets.fetch import fetch
from classification.datasets.specs import find_dataset
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding


def run(args: argparse.Namespace) -> None:
    """Run `check` or `fetch` with the parsed options.

    Raises:
        UserError: a dataset is unusable or was not downloaded. The other datasets are processed
            before the error is raised.
    """
    {"check": _check, "fetch": _fetch}[args.command](args)


def _check(args: argparse.Namespace) -> None:
    reports = []
    for name in args.names:
        reports.append(check_dataset(name, args.data, Decoding(args.image_range)))
        print(*lines(reports[-1]), sep="\n", flush=True)
    if args.output:
        write_report(args.output, reports)
    if unusable := [report.name for report in reports if not report.usable]:
        raise UserError(f"{', '.join(unusable)}: not usable. Fix the errors above.")


def _fetch(args: argparse.Namespace) -> None:
    failed = []
    for name in args.names:
        if not find_dataset(name).needs_root:
            print(f"{name} is part of an installed package and needs no download.", flush=True)
            continue
        try:
            print(fetch(name, args.data), flush=True)
        except UserError as error:  # continue with the other datasets
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise UserError(f"{', '.join(failed)}: not downloaded. See the messages above.")
