"""Measure AP, or mIoU of semantic segmentation, under a PGD attack.

Examples:
  robust-backbones attack --config digits_mask_rcnn_robust.yaml --eps 2/255 4/255 8/255 \\
      MODEL.WEIGHTS output/digits_mask_rcnn_robust/model_final.pth

Writes result.json, curve.png and pictures/.
"""

import argparse

from robust_backbones.commands import detector_options
from robust_backbones.core.cli import count, positive_eps, whole
from robust_backbones.core.eps import check_eps
from robust_backbones.core.errors import user_errors
from robust_backbones.core.resources import require_config

DETECTOR_LOSSES = ("all", "classification", "localization", "mask")
SEMANTIC_LOSSES = ("cross-entropy", "masked", "cosine")
EPS = {"linf": [2 / 255, 4 / 255, 8 / 255], "l2": [0.5, 1.0, 2.0]}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = detector_options.parser(__doc__)
    add = parser.add_argument
    add("--constraint", choices=("linf", "l2"), default="linf", help="norm of the perturbation")
    add(
        "--eps",
        type=positive_eps,
        nargs="+",
        help="perturbation radii for images in [0, 1], such as 4/255; for l2 the norm over the "
        "resized image (default: 2/255 4/255 8/255 for linf, 0.5 1 2 for l2)",
    )
    add("--steps", type=count, default=10, help="number of PGD steps")
    add(
        "--step-size",
        type=positive_eps,
        help="length of a step, in the unit of --eps (default: 2.5 * eps / steps)",
    )
    add(
        "--loss",
        nargs="+",
        choices=DETECTOR_LOSSES + SEMANTIC_LOSSES,
        help="losses to maximize, each by a separate attack. The strongest attack on each image "
        "counts (default: all classification; for semantic segmentation: "
        f"{' '.join(SEMANTIC_LOSSES)})",
    )
    add("--restarts", type=count, default=1, help="random starts for each loss")
    add(
        "--pictures",
        type=whole,
        default=4,
        help="number of images to draw at each radius, clean and attacked",
    )
    return detector_options.parse(parser, argv)


def main(argv: list[str] | None = None) -> None:
    """Check the input, attack the detector and write the results."""
    args = parse(argv)
    with user_errors():
        radii = sorted(set(args.eps or EPS[args.constraint]))
        for eps in radii:
            check_eps("--eps", args.constraint, eps)
        require_config(args.config)
        from robust_backbones.detection.robustness.attack_evaluation import start

        start(
            args.num_gpus,
            args.config,
            args.opts,
            args.output,
            dataset=args.dataset,
            constraint=args.constraint,
            radii=radii,
            steps=args.steps,
            step_size=args.step_size,
            losses=list(dict.fromkeys(args.loss or ())) or None,
            restarts=args.restarts,
            images=args.images,
            pictures=args.pictures,
            batch_size=args.batch_size,
            seed=args.seed,
        )
