"""Find errors in detection datasets: boxes, image sizes, missing files, ids, classes.

Examples:
  robust-backbones check-data cells=voc:/data/BCCD:train voc_2012_val
"""

import argparse

from robust_backbones.core.cli import Parser, add_image_range, location, whole
from robust_backbones.core.dataset_forms import LAYOUTS, SYNTAX
from robust_backbones.core.errors import user_errors


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, epilog=LAYOUTS)
    add = parser.add_argument
    add("data", nargs="+", metavar="DATA", help=f"registered dataset, or {SYNTAX}")
    add(
        "--no-pixels",
        action="store_true",
        help="do not open the image files; faster, but misses damaged files and wrong sizes",
    )
    add(
        "--boxes-only",
        action="store_true",
        help="report missing and broken masks as notes, not errors, as for MODEL.MASK_ON False",
    )
    add(
        "--repair",
        action="store_true",
        help="report boxes that DATASETS.REPAIR True clips or removes as notes, not errors",
    )
    add("--list", type=whole, default=5, help="print N problems of each kind")
    add_image_range(add)
    add(
        "--csv",
        type=location,
        metavar="FILE",
        help="CSV file for all problems (dataset, kind, image, text)",
    )
    add(
        "--json",
        type=location,
        metavar="FILE",
        help="JSON file with the images, classes, objects, errors and digest of each dataset",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print a report for each dataset. Return 1 if any dataset has an error, else 0."""
    args = parse(argv)
    with user_errors():
        from robust_backbones.detection.data.validation_report import report

        errors = report(
            args.data,
            pixels=not args.no_pixels,
            masks=not args.boxes_only,
            listed=args.list,
            csv_file=args.csv,
            json_file=args.json,
            repair=args.repair,
            image_range=args.image_range,
        )
    return int(errors > 0)
