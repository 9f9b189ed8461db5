"""Train a classifier, standard or adversarial -> checkpoint.pt, metrics.jsonl, result.json.

python -m classification.pretrain --data /data/imagenet --output output/pretrain/resnet50_l2_eps3
python -m classification.pretrain --dataset digits --arch resnet18 --output output/pretrain/digits
torchrun --nproc-per-node 8 -m classification.pretrain --data /data/imagenet --output ...

Exit codes: 0 success, 2 invalid input, 75 stopped by SIGTERM or Ctrl-C and saved (the same command
with --resume continues).
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
