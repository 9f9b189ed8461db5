"""Visualize and invert representations (the paper's Figure 1).

Examples:
  robust-backbones interpret --weights robust://resnet50_l2_eps0 robust://resnet50_l2_eps3 \\
      --data /data/imagenet --output output/interpret/imagenet
  robust-backbones interpret --weights standard.pt robust.pt --dataset digits \\
      --eval-weights third.pt --output output/interpret/digits

Writes result.json, figure.png, figure.svg and every image as a PNG file.
"""

from classification.interpret.options import parser, settings_of
from robust_backbones.core.errors import user_errors
from robust_backbones.weights import fetch_weights


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Invalid input prints one line and exits with code 2."""
    args = parser(__doc__).parse_args(argv)
    with user_errors():
        settings = settings_of(args)
        # Resolve the paths before importing torch, so that a wrong path is reported immediately.
        # An absolute path cannot be mistaken for the name of a published model.
        paths = {name: fetch_weights(each).absolute() for name, each in settings.networks.items()}
        given = settings.eval_weights
        eval_path = None if given is None else fetch_weights(given).absolute()
        from classification.interpret.run import run  # imports torch, which takes seconds

        run(settings, paths, eval_path)


if __name__ == "__main__":
    main()
