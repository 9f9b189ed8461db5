#!/usr/bin/env python
"""Measure a detector's AP on commonly corrupted images -> result.json, table.csv, figure.png.

tools/corrupt_net.py --config configs/digits_mask_rcnn_robust.yaml \\
    MODEL.WEIGHTS output/digits_mask_rcnn_robust/model_final.pth
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

import evaluation_options

from robust_backbones.core import resources as clone
from robust_backbones.core.errors import user_errors
from robust_backbones.core.files import claimed


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = evaluation_options.parser(__doc__)
    add = parser.add_argument
    add(
        "--corruptions",
        nargs="+",
        metavar="KIND",
        help="kinds, such as fog, or groups: noise, blur, weather, digital (default: all 15 kinds)",
    )
    add(
        "--severities",
        nargs="+",
        type=int,
        choices=(1, 2, 3, 4, 5),
        default=[1, 2, 3, 4, 5],
        help="how strong (default: all five)",
    )
    return evaluation_options.parse(parser, argv)


def run(args) -> None:
    """Check, corrupt, predict, write."""
    clone.detector_config(args.config)
    from robust_backbones.detection import compat
    from robust_backbones.detection.robustness import corruption_report as report
    from robust_backbones.detection.robustness import corruptions, subject
    from robust_backbones.detection.robustness import grid as conditions

    version = corruptions.package_version()
    kinds, severities = corruptions.choose(args.corruptions), sorted(set(args.severities))
    compat.silence_detectron2()
    found = subject.find(args.config, args.opts, args.images, args.seed)
    output = args.output or Path(found.cfg.OUTPUT_DIR, "corruptions")
    settings = found.settings(
        package=f"{corruptions.PACKAGE} {version}", batch_size=args.batch_size, seed=args.seed
    )
    plan = corruptions.conditions(found.cfg, kinds, severities, args.seed)
    with claimed(output):
        rows = conditions.measure_all(found, plan, settings, output, args.batch_size)
        metrics = report.summary(rows)
        print(report.table(metrics))
        report.write_csv(metrics, output / "table.csv")
        report.draw(metrics, output / "figure.png")
        subject.write_result(
            found,
            output,
            kind="detection-corruptions",
            metrics=metrics,
            seed=args.seed,
            settings=settings | {"corruptions": kinds, "severities": severities},
            warnings=None,
            seconds=sum(row["seconds"] for row in rows.values()),
        )
    if not metrics["complete"]:
        print(
            "mPC and rPC are over the chosen kinds and severities: not to be compared with "
            "published ones, which are over all."
        )
    print(f"{len(found.items)} images -> {output}")


def main(argv=None) -> None:
    """Exit code 2 and one line for user mistakes."""
    args = parse(argv)
    with user_errors():
        run(args)


if __name__ == "__main__":
    main()
