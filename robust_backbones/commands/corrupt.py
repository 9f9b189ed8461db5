"""Measure AP, or mIoU of semantic segmentation, under common corruptions.

Examples:
  robust-backbones corrupt --config digits_mask_rcnn_robust.yaml \\
      MODEL.WEIGHTS output/digits_mask_rcnn_robust/model_final.pth

Writes result.json, table.csv and figure.png.
"""

import argparse

from robust_backbones.commands import detector_options
from robust_backbones.core.errors import user_errors
from robust_backbones.core.resources import require_config


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = detector_options.parser(__doc__)
    add = parser.add_argument
    add(
        "--corruptions",
        nargs="+",
        metavar="NAME",
        help="corruptions such as fog, or groups: noise, blur, weather, digital (default: all 15)",
    )
    add(
        "--severities",
        nargs="+",
        type=int,
        choices=(1, 2, 3, 4, 5),
        default=[1, 2, 3, 4, 5],
        help="severities to evaluate, 1 to 5",
    )
    return detector_options.parse(parser, argv)


def main(argv: list[str] | None = None) -> None:
    """Check the input, evaluate the detector on corrupted images and write the results."""
    args = parse(argv)
    with user_errors():
        require_config(args.config)
        from robust_backbones.detection.robustness.corruption_evaluation import start

        start(
            args.num_gpus,
            args.config,
            args.opts,
            args.output,
            dataset=args.dataset,
            kinds=args.corruptions,
            severities=sorted(set(args.severities)),
            images=args.images,
            batch_size=args.batch_size,
            seed=args.seed,
        )
