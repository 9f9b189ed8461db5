#!/usr/bin/env python
"""Score a file of predictions: COCO's metrics, VOC's for VOC data sets; no model is needed.

tools/evaluate.py coco_instances_results.json --annotations instances_val2017.json
tools/evaluate.py coco_instances_results.json --dataset voc_2007_test --csv scores.csv
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import user_errors
from robust_backbones.core.files import atomic, check_readable


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__)

    add = parser.add_argument
    add(
        "predictions",
        metavar="PREDICTIONS.json",
        help="a list in COCO's result format, such as OUTPUT_DIR/inference/NAME/"
        "coco_instances_results.json",
    )
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--annotations", metavar="FILE", help="a COCO annotation file")
    truth.add_argument(
        "--dataset",
        metavar="NAME",
        help="a registered data set, such as coco_2017_val or voc_2007_test",
    )
    add(
        "--tasks",
        nargs="+",
        default=(),
        choices=("bbox", "segm", "keypoints"),
        help="what to score (default: what the predictions have)",
    )
    add(
        "--areas",
        nargs="+",
        type=float,
        default=None,
        metavar="EDGE",
        help="AP by size, too: of objects whose side (the root of their area) lies between "
        "neighbours of these numbers, pixels, such as 0 16 32 64 96 inf",
    )
    add("--csv", metavar="FILE", help="write the table as task, metric, class, percent")
    add("--output", metavar="FILE", help="write a result file (docs/formats.md)")

    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> None:
    """Score, print, write."""
    for path in filter(None, (args.predictions, args.annotations)):
        check_readable(path, "Give a JSON file")
    from robust_backbones.core import results
    from robust_backbones.detection.evaluation import saved as saved_predictions
    from robust_backbones.detection.evaluation import tables as score_tables

    started = time.perf_counter()
    scored = saved_predictions.score(
        args.predictions, args.annotations, args.dataset, args.tasks, args.areas or ()
    )
    print(f"{args.predictions} on {scored.name}, percent:\n\n{score_tables.text(scored.metrics)}")
    if args.csv:
        with atomic(args.csv) as temporary:
            temporary.write_text(score_tables.csv_text(scored.metrics), encoding="utf-8")
    if args.output:
        results.write(
            args.output,
            kind="detection",
            metrics={scored.name: scored.metrics},
            settings=vars(args) | {"areas": [f"{edge:g}" for edge in args.areas or ()]},
            weights_sha256=None,
            data=scored.data,
            seed=0,
            seconds=time.perf_counter() - started,
        )


def main(argv=None) -> None:
    """Evaluate; user mistakes are one line and exit code 2."""
    args = parse(argv)
    with user_errors():
        evaluate(args)


if __name__ == "__main__":
    main()
