#!/usr/bin/env python
"""Attack a detector with PGD and measure its AP -> result.json, curve.png, pictures/.

tools/attack_net.py --config configs/digits_mask_rcnn_robust.yaml --eps 2/255 4/255 8/255 \\
    MODEL.WEIGHTS output/digits_mask_rcnn_robust/model_final.pth
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

import evaluation_options

from robust_backbones.core import resources as clone
from robust_backbones.core.cli import number
from robust_backbones.core.eps import STEP_FACTOR, check_eps, parse_number
from robust_backbones.core.errors import user_errors
from robust_backbones.core.files import claimed

EPS = {"linf": [2 / 255, 4 / 255, 8 / 255], "l2": [0.5, 1.0, 2.0]}
length = number(parse_number, lambda v: v > 0, "a finite number above 0")


def parse(argv=None) -> argparse.Namespace:
    parser = evaluation_options.parser(__doc__)
    add = parser.add_argument
    add(
        "--constraint",
        choices=("linf", "l2"),
        default="linf",
        help="norm of the ball (default: linf)",
    )
    add(
        "--eps",
        type=length,
        nargs="+",
        metavar="EPS",
        help="radii for images in [0, 1], such as 4/255; for l2 the norm over the resized image "
        "(default: 2/255 4/255 8/255 for linf, 0.5 1 2 for l2)",
    )
    add(
        "--steps",
        type=evaluation_options.count,
        default=10,
        metavar="N",
        help="steps of PGD (default: 10)",
    )
    add(
        "--step-size",
        type=length,
        metavar="S",
        help="length of a step, in the unit of --eps (default: 2.5 * eps / steps)",
    )
    add(
        "--loss",
        nargs="+",
        choices=("all", "classification", "localization", "mask"),
        default=["all", "classification"],
        help="training losses to raise, each in an attack of its own; per image the strongest "
        "attack counts (default: all classification)",
    )
    add(
        "--restarts",
        type=evaluation_options.count,
        default=1,
        metavar="N",
        help="random starts for each loss (default: 1)",
    )
    add(
        "--pictures",
        type=evaluation_options.whole,
        default=4,
        metavar="N",
        help="images to draw at each radius, clean and attacked (default: 4)",
    )
    return evaluation_options.parse(parser, argv)


def run(args) -> None:
    """Check, attack, write."""
    clone.detector_config(args.config)
    from robust_backbones.detection import compat
    from robust_backbones.detection.robustness import attack_report as attack_evaluation
    from robust_backbones.detection.robustness import grid as conditions
    from robust_backbones.detection.robustness import subject

    rule, step = args.constraint, args.step_size
    radii = sorted(set(args.eps or EPS[rule]))
    for eps in radii:
        check_eps("--eps", rule, eps)
    compat.silence_detectron2()
    found = subject.find(args.config, args.opts, args.images, args.seed)
    output = args.output or Path(found.cfg.OUTPUT_DIR, f"attack_{rule}")
    chosen = {
        "constraint": rule,
        "steps": args.steps,
        "step_size": step,
        "losses": list(dict.fromkeys(args.loss)),
        "restarts": args.restarts,
    }
    settings = found.settings(
        attack="pgd",
        **chosen
        | {
            "step_size": step or f"{STEP_FACTOR} * eps / steps",
            "random_start": True,
            "batch_size": args.batch_size,
            "seed": args.seed,
        },
    )
    plan = attack_evaluation.conditions(
        found.cfg,
        found.dataset,
        radii,
        chosen,
        seed=args.seed,
        folder=output / "pictures",
        pictures=[number for number, _ in found.items[: args.pictures]],
    )
    with claimed(output):
        rows = conditions.measure_all(found, plan, settings, output, args.batch_size)
        print(attack_evaluation.table(rows), attack_evaluation.in_words(chosen), sep="\n")
        attack_evaluation.draw_curve(rows, rule, output / "curve.png")
        subject.write_result(
            found,
            output,
            kind="detection-robustness",
            metrics={"attacks": rows},
            settings=settings | {"eps": radii},
            seed=args.seed,
            seconds=sum(row["seconds"] for row in rows.values()),
            warnings=attack_evaluation.warnings(rows),
        )
    print(f"{len(found.items)} images -> {output}")


def main(argv=None) -> None:
    """Exit code 2 and one line for user mistakes."""
    args = parse(argv)
    with user_errors():
        run(args)


if __name__ == "__main__":
    main()
