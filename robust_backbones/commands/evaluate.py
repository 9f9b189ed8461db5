"""Score a file of detections with COCO's metrics, or with VOC's and COCO's on VOC datasets.

Examples:
  robust-backbones evaluate coco_instances_results.json --annotations instances_val2017.json
  robust-backbones evaluate coco_instances_results.json --dataset voc_2007_test --csv scores.csv
  robust-backbones evaluate coco_instances_results.json --dataset cells=voc:/data/BCCD:test
"""

import argparse

from robust_backbones.commands import detector_options
from robust_backbones.core.cli import Number, Parser, count, location
from robust_backbones.core.dataset_forms import LAYOUTS, SYNTAX
from robust_backbones.core.errors import user_errors
from robust_backbones.core.files import check_readable


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        description=__doc__,
        usage="%(prog)s PREDICTIONS.json [options] [KEY VALUE ...]",
        epilog="KEY VALUE pairs set how a dataset is read, such as DATASETS.REPAIR True, and\n"
        "DATASETS.CLASSES \"['cat', 'dog']\" for the order of category_id in VOC data.\n\n"
        + LAYOUTS,
    )
    add = parser.add_argument
    add(
        "predictions",
        type=location,
        metavar="PREDICTIONS.json",
        help="list of detections in COCO's result format, such as "
        "OUTPUT_DIR/inference/NAME/coco_instances_results.json",
    )
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--annotations", type=location, metavar="FILE", help="COCO annotation file")
    truth.add_argument(
        "--dataset", metavar="DATA", help=f"registered dataset, such as coco_2017_val, or {SYNTAX}"
    )
    add(
        "--tasks",
        nargs="+",
        default=[],
        choices=("bbox", "segm", "keypoints"),
        help="tasks to score (default: the tasks of the detections)",
    )
    add(
        "--areas",
        nargs="+",
        type=Number(float, lambda v: v >= 0, "a number of at least 0, or inf"),
        default=[],
        help="also report AP by object size, the square root of the area: one interval between "
        "each pair of neighboring values, such as 0 16 32 64 96 inf",
    )
    add(
        "--max-detections",
        type=count,
        help="score the N detections with the highest scores per image and class (default: 100); "
        "not for keypoints, whose limit is 20",
    )
    add(
        "--csv",
        type=location,
        metavar="FILE",
        help="write the table as task, metric, class, percent",
    )
    add("--output", type=location, metavar="FILE", help="write a result file (JSON)")
    args = detector_options.parse(parser, argv)
    if args.opts and not args.dataset:
        parser.error("KEY VALUE pairs need --dataset")
    return args


def main(argv: list[str] | None = None) -> None:
    """Score the detections, print the metrics and write the files."""
    args = parse(argv)
    with user_errors():
        for path in filter(None, (args.predictions, args.annotations)):
            check_readable(path, "Give a JSON file")
        from robust_backbones.detection.saved_report import report

        report(
            args.predictions,
            annotations=args.annotations,
            dataset=args.dataset,
            overrides=args.opts,
            tasks=args.tasks,
            areas=args.areas,
            limit=args.max_detections,
            csv=args.csv,
            output=args.output,
        )
