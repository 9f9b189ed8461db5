"""Options of `python -m classification.robustness_eval`."""

import argparse

from classification.datasets.options import add_data, by_dataset, dataset_name, restrict_data
from classification.datasets.specs import DATASETS
from robust_backbones.core import cli, input_statistics
from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import check_eps

EPS = {"l2": [0.25, 0.5, 1.0], "linf": [2 / 255, 4 / 255, 8 / 255]}


def parser(description: str) -> Parser:
    """Return the command's parser.

    Args:
        description: text at the top of `--help`.
    """
    p = Parser(description=description)
    model = p.add_argument_group("model and images").add_argument
    model(
        "--weights",
        type=cli.location,
        required=True,
        help="classifier: a path, a published name (robust://resnet50_l2_eps3) or a URL",
    )
    input_statistics.add_options(model)
    model(
        "--dataset",
        type=dataset_name,
        choices=tuple(DATASETS),
        default="imagenet",
        help="dataset whose test split is used",
    )
    add_data(model)
    model(
        "--image-size",
        type=cli.count,
        help=f"height and width of the images in pixels (default: {by_dataset('image_size')})",
    )
    cli.add_image_range(model)
    model(
        "--images",
        type=cli.count,
        help="evaluate N random images, balanced over the classes (default: all images)",
    )
    attack = p.add_argument_group("attacks").add_argument
    attack(
        "--constraint", choices=tuple(EPS), default="l2", help="norm that limits the perturbation"
    )
    attack(
        "--eps",
        type=cli.eps,
        nargs="+",
        help="perturbation radii for images in [0, 1]: L2 norm over the image, or L-infinity. "
        "Fractions such as 4/255 are allowed; 0: clean accuracy only (default: 0.25 0.5 1 for l2, "
        "2/255 4/255 8/255 for linf)",
    )
    attack(
        "--steps",
        type=cli.count,
        nargs="+",
        default=[20],
        help="PGD steps, each of length 2.5 * eps / steps. Several values give several attacks",
    )
    attack(
        "--restarts",
        type=cli.count,
        default=1,
        help="PGD runs per image, each from its own random start",
    )
    attack(
        "--autoattack",
        action="store_true",
        help="also run AutoAttack at every radius. It needs thousands of forward passes per image, "
        "so consider --images",
    )
    running = p.add_argument_group("running").add_argument
    running("--output", type=cli.path, required=True, metavar="DIR", help="folder for the results")
    running("--batch-size", type=cli.count, default=100, help="images per batch")
    running(
        "--seed",
        type=cli.seed,
        default=0,
        help="random seed for the attacks and the choice of --images",
    )
    cli.add_device(running)
    cli.add_workers(running)
    restrict_data(p)
    p.restrict(
        *("--steps", "--restarts", "--autoattack"),
        to="an --eps above 0",
        when=lambda args: args.eps is None or any(args.eps),
    )
    return p


def radii(args: argparse.Namespace) -> list[float]:
    """Return the perturbation radii above 0 in increasing order.

    Raises:
        UserError: an L-infinity radius covers all of [0, 1].
    """
    found = sorted({eps for eps in args.eps or EPS[args.constraint] if eps})
    for eps in found:
        check_eps("--eps", args.constraint, eps)
    return found
