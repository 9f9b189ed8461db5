#!/usr/bin/env python
"""Report what is wrong with detection data: boxes, sizes, files, ids, classes.

tools/check_data.py cells=voc:/data/BCCD:train voc_2012_val
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import user_errors


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__)

    add = parser.add_argument
    add(
        "data",
        nargs="+",
        metavar="DATA",
        help="NAME=coco:IMAGES:ANNOTATIONS.json, NAME=voc:ROOT:SPLIT, or a registered data set",
    )
    add(
        "--no-pixels",
        action="store_true",
        help="do not open the image files: quick, but sizes and damage stay unknown",
    )
    add("--list", type=int, default=5, metavar="N", help="show N of each kind (default: 5)")
    add("--csv", metavar="FILE", help="write all of them: data set, kind, image, text")

    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Print a report per data set; 1 if any has a fault, else 0."""
    args = parse(argv)
    with user_errors():
        from robust_backbones.detection.data import custom as own_data
        from robust_backbones.detection.data import validate as data_check

        faults, rows = 0, []
        for text in args.data:
            if own_data.is_own(text):
                name, found = text.split("=")[0], own_data.parse(text).read()
            else:
                name, found = text, data_check.annotations_of(text)
            problems = data_check.check(found, pixels=not args.no_pixels)
            rows += [(name, p.kind, p.image, p.text) for p in problems]
            faults += report(name, found, problems, args.list, data_check)
        if args.csv:
            write_csv(args.csv, rows)
    return int(faults > 0)


def report(name: str, found, problems: list, shown: int, kinds) -> int:
    """Print one data set's; returns the number of faults."""
    objects = Counter(thing.name for image in found.images for thing in image.objects)
    print(
        f"{name}: {counted(len(found.images), 'image')}, {counted(objects.total(), 'object')}, "
        f"{counted(len(found.classes), 'class', 'classes')}"
    )
    print("  " + ", ".join(f"{label} {objects[label]}" for label in found.classes))
    faults = 0
    for group, why in ((kinds.FATAL, "fault"), (kinds.MENDED, "fault"), (kinds.NOTED, "note")):
        for kind, meaning in group.items():
            some = [p for p in problems if p.kind == kind]
            if some:
                faults += len(some) * (why == "fault")
                print(f"  {why}: {kind}, {len(some)}: {meaning}")
                for problem in some[:shown]:
                    print(f"    {problem.image + ': ' if problem.image else ''}{problem.text}")
    print("  no faults" if not faults else f"  {counted(faults, 'fault')}")
    return faults


def counted(number: int, one: str, many: str = "") -> str:
    """`1 fault`, `2 faults`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def write_csv(path: str, rows: list[tuple]) -> None:
    """All problems as a table."""
    import csv

    from robust_backbones.core.files import atomic

    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("data", "kind", "image", "text"))
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
