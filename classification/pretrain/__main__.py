"""Train a standard or robust classifier from random weights.

Examples:
  robust-backbones pretrain --data /data/imagenet --output output/pretrain/resnet50_l2_eps3
  robust-backbones pretrain --dataset digits --arch resnet18 --output output/pretrain/digits
  torchrun --nproc-per-node 8 -m classification.pretrain --data /data/imagenet --output DIR

Writes checkpoint.pt, result.json, metrics.jsonl, curves.png and log.txt to --output.

Exit codes: 0 success, 2 invalid input, 75 interrupted and resumable with --resume.
"""

from classification.datasets.specs import locate
from classification.pretrain import options
from robust_backbones.core.errors import user_errors


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    args = options.parser(__doc__).parse_args(argv)
    with user_errors():
        locate(args.dataset, args.data)  # report this common mistake before importing torch
        settings = options.make_settings(args)
        from classification.pretrain import run

        run.main(args, settings)


if __name__ == "__main__":
    main()
