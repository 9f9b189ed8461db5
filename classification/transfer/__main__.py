"""Measure how well a network transfers to a classification task.

Examples:
  robust-backbones transfer --weights robust://resnet50_l2_eps3 --dataset aircraft \\
      --data /data/fgvc-aircraft-2013b --mode fixed-feature --trials 3
  robust-backbones transfer --weights output/pretrain/digits/checkpoint.pt --dataset faces
  torchrun --nproc-per-node 8 -m classification.transfer --mode full-network \\
      --weights robust://resnet50_l2_eps3 --dataset cars --data /data/cars

Writes result.json, per_class.csv, confusion.csv and log.txt to --output.

Exit codes: 0 success, 2 invalid input, 75 interrupted; the same command resumes.
"""

from classification.transfer import options
from robust_backbones import weights
from robust_backbones.core.errors import user_errors


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and measure."""
    args = options.parser(__doc__).parse_args(argv)
    with user_errors():
        path = weights.fetch_weights(
            args.weights
        )  # report this common mistake before importing torch
        from classification.transfer import run

        run.main(args, path)


if __name__ == "__main__":
    main()
