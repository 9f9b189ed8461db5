"""Measure a classifier's clean and robust accuracy with PGD and AutoAttack.

Examples:
  robust-backbones robustness-eval --weights output/pretrain/digits_l2/checkpoint.pt \\
      --dataset digits --constraint l2 --eps 0.25 0.5 1.0 --output output/robustness/digits_l2

Writes result.json, per_image.jsonl and curve.png to --output. To resume an interrupted evaluation,
repeat the same command.
"""

from classification.datasets.specs import locate
from classification.robustness_eval.options import parser, radii
from robust_backbones import weights
from robust_backbones.core.errors import user_errors


def main(argv: list[str] | None = None) -> None:
    """Run the command line. A user error prints one line to stderr and exits with code 2."""
    args = parser(__doc__).parse_args(argv)
    with user_errors():
        locate(args.dataset, args.data)  # report this common mistake before importing torch
        radii(args)  # likewise
        # An absolute path cannot be mistaken for the name of a published model.
        path = weights.fetch_weights(args.weights).absolute()
        from classification.robustness_eval import run

        run.main(args, path)


if __name__ == "__main__":
    main()
