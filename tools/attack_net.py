#!/usr/bin/env python
"""Attack a detector with PGD and measure its AP -> result.json, curve.png, pictures/.

tools/attack_net.py --config configs/digits_mask_rcnn_robust.yaml --constraint linf --eps 2 4 8 \\
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

EPS = {"linf": ["2", "4", "8"], "l2": ["0.5", "1", "2"]}


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
        nargs="+",
        metavar="E",
        help="radii: for linf numbers of 255ths, 4 means 4/255 (default: 2 4 8); for l2 norms over "
        "the resized image, pixels in [0, 1] (default: 0.5 1 2)",
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
    from robust_backbones.detection import attack, compat
    from robust_backbones.detection.robustness import attack_report as attack_evaluation
    from robust_backbones.detection.robustness import grid as conditions
    from robust_backbones.detection.robustness import subject

    rule, texts = args.constraint, args.eps or EPS[args.constraint]
    radii = sorted({attack_evaluation.radius("--eps", rule, text) for text in texts})
    step = args.step_size and attack_evaluation.radius("--step-size", rule, args.step_size)
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
            "step_size": step or f"{attack.STEP_FACTOR} * eps / steps",
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
