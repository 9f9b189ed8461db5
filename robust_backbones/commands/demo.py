"""Pretrain, convert, detect and compare on bundled data, with a standard and a robust backbone.

Examples:
  robust-backbones demo
  robust-backbones demo --segmentation

Writes output/demo/index.html. Repeat the command to resume. Finished stages are skipped. Delete
the folder to start over.
"""

import argparse
import time
from pathlib import Path

from robust_backbones.core.cli import Parser, path
from robust_backbones.core.errors import user_errors
from robust_backbones.core.files import claimed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output", type=path, default=Path("output/demo"), metavar="DIR", help="output folder"
    )
    parser.add_argument(
        "--segmentation",
        action="store_true",
        help="also train and attack semantic segmentation models",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run all stages, write the page, and print the results and the next step."""
    args = parse(argv)
    with user_errors(), claimed(args.output):
        started = time.perf_counter()
        from robust_backbones.commands import demo_page, demo_runs

        stages = demo_runs.plan(args.output, args.segmentation)
        demo_runs.execute(stages)
        found = demo_page.read_numbers(demo_runs.networks(args.output))
        page = demo_page.write_page(found, stages, args.output)
        print()
        print_table(demo_page.table(found))
        for answer in demo_page.read_answers(args.output / "compare/report"):
            print(f"\n{answer['question']}: {answer['text']}")
        text, command = next(iter(demo_page.NEXT_STEPS.items()))
        print(f"\nNext: {text}\n  {command}")
        minutes = (time.perf_counter() - started) / 60
        print(f"\n{page.resolve().as_uri()}  ({minutes:.1f} minutes)")


def print_table(rows: list[list[str]]) -> None:
    """Print a table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
