"""Pretrain, convert and detect on embedded data, with a standard and a robust backbone.

robust-backbones demo

Writes output/demo/index.html. Repeat the command to continue: finished stages are skipped.
"""

import argparse
import time
from pathlib import Path

from robust_backbones.commands.demo_runs import STAGES, execute, plan, print_table, table
from robust_backbones.core.cli import Parser, path
from robust_backbones.core.errors import user_errors
from robust_backbones.core.files import claimed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output", type=path, default=Path("output/demo"), metavar="DIR", help="folder of the demo"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run all stages, print the table and write the page."""
    args = parse(argv)
    with user_errors(), claimed(args.output):
        started = time.perf_counter()
        runs = plan(args.output)
        stages = [(run, stage) for run in runs for stage in STAGES]
        for number, (run, stage) in enumerate(stages, 1):
            execute(run, stage, f"{number}/{len(stages)}")
        print()
        print_table(table(runs))
        from robust_backbones.commands.demo_page import write_page

        page = write_page(runs, args.output)
        minutes = (time.perf_counter() - started) / 60
        print(f"\n{page.resolve().as_uri()}  ({minutes:.1f} minutes)")
