"""Options of `classification.interpret` and the settings that they define."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from classification.datasets.options import add_data, by_dataset, dataset_name, restrict_data
from classification.datasets.specs import DATASETS
from robust_backbones.core import cli, input_statistics
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import InputStatistics
from robust_backbones.weights import short_name

MODES = ("visualize", "invert", "both")
STARTS = ("noise", "image")
CLASSES, IMAGES = 5, 5  # default numbers of classes and images
# Image size in pixels for which the authors use steps of length 1. The L2 norm of an image is
# proportional to its height and width.
REFERENCE_SIZE = 224
# Maps a mode to the options that only this mode uses.
MODE_OPTIONS = {"visualize": ("units", "classes"), "invert": ("images",)}


@dataclass(frozen=True)
class InterpretSettings:
    """Settings of a run.

    Attributes:
        networks: weights of each network by its name, given as path, published name or URL. Each
            network is one row of the figure.
        eval_weights: weights of the evaluation classifier, or None.
        statistics: input statistics that the user states for all weights, or None.
        mode: optimizations to run, one of `MODES`.
        units, classes: indices of the units and classes to visualize; None if not given.
        images: number of test images to invert.
        start: type of the start images, one of `STARTS`.
        dataset, data: name and path of the dataset.
        image_size: height and width of the images, pixels.
        image_range: values that become black and white in images with more than 8 bits per channel;
            None: such images are an error.
        eps: radius of the L2 ball around the start image, for images in [0, 1].
        steps: number of gradient steps.
        step_size: L2 length of a step.
        use_best: whether to use each image's best iterate instead of the last iterate.
        seed: seed for the noise and the choice of images.
        batch_size: number of images that are optimized together.
        device: torch device; None to choose a GPU if there is one.
        output: folder for the results.
    """

    networks: dict[str, str]
    eval_weights: str | None
    statistics: InputStatistics | None
    mode: str
    units: list[int] | None
    classes: list[int] | None
    images: int
    start: str
    dataset: str
    data: str | None
    image_size: int
    image_range: list[float] | None
    eps: float
    steps: int
    step_size: float
    use_best: bool
    seed: int
    batch_size: int
    device: str | None
    output: Path

    @property
    def needs_data(self) -> bool:
        """Whether test images are inverted or used as start images."""
        return self.images > 0 or self.start == "image"

    def targets(self, classes: int) -> list[tuple[str, int]]:
        """Return the targets to visualize, first classes `("class", 3)`, then units `("unit", 12)`.

        Duplicates are removed.

        Args:
            classes: smallest number of classes of the networks.
        """
        if self.mode == "invert":
            return []
        default = [] if self.units else range(min(CLASSES, classes))
        wanted = [("class", k) for k in (default if self.classes is None else self.classes)]
        wanted += [("unit", k) for k in self.units or []]
        return list(dict.fromkeys(wanted))


def parser(description: str) -> Parser:
    """Build the command-line parser."""
    p = Parser(description=description, epilog="A finished run in --output is skipped.")
    what = p.add_argument_group("networks and images").add_argument
    what(
        "--weights",
        type=cli.location,
        nargs="+",
        required=True,
        help="one or more networks, each a row of the figure: paths, published names "
        "(robust://resnet50_l2_eps3) or URLs",
    )
    input_statistics.add_options(what)
    what("--name", nargs="+", help="one name per network (default: from the weights)")
    what(
        "--mode",
        choices=MODES,
        default="both",
        help="visualize: maximize a unit or class; invert: match the representation of test images",
    )
    what(
        "--units",
        type=cli.whole,
        nargs="+",
        help="units of the representation (input of the last layer) to visualize, from 0",
    )
    what(
        "--classes",
        type=cli.whole,
        nargs="+",
        help=f"classes to visualize, from 0 (default: the first {CLASSES}, or none with --units)",
    )
    what(
        "--images",
        type=cli.count,
        help=f"number of test images to invert, chosen by --seed (default: {IMAGES})",
    )
    what(
        "--start", choices=STARTS, default="noise", help="start from gray noise or from test images"
    )
    what(
        "--eval-weights",
        type=cli.location,
        metavar="WEIGHTS",
        help="evaluation classifier, which classifies the resulting images; it must have the same "
        "classes and be a different network from --weights",
    )
    what(
        "--dataset",
        type=dataset_name,
        choices=tuple(DATASETS),
        default="imagenet",
        help="dataset of the test images; not needed to visualize from noise",
    )
    add_data(what)
    what(
        "--image-size",
        type=cli.count,
        help=f"height and width of the images in pixels (default: {by_dataset('image_size')})",
    )
    cli.add_image_range(what)
    how = p.add_argument_group("optimization").add_argument
    how("--steps", type=cli.count, default=1000, help="number of gradient steps")
    how(
        "--step-size",
        type=cli.positive_eps,
        help="L2 length of a step, for images in [0, 1] (default: --image-size / "
        f"{REFERENCE_SIZE})",
    )
    how(
        "--eps",
        type=cli.positive_eps,
        default=1000.0,
        help="radius of the L2 ball around the start image, for images in [0, 1]; 1000 does not "
        "constrain images smaller than 577 pixels",
    )
    how(
        "--use-best", action="store_true", help="use each image's best step instead of the last one"
    )
    how("--seed", type=cli.seed, default=0, help="random seed")
    run = p.add_argument_group("running").add_argument
    run("--batch-size", type=cli.count, default=32, help="images per batch")
    cli.add_device(run)
    run("--output", type=cli.path, required=True, metavar="DIR", help="folder for the results")
    restrict_data(p)
    p.restrict(
        *("--data", "--image-range"),
        to="--start image or --mode invert",
        when=lambda args: args.mode != "visualize" or args.start == "image",
    )
    return p


def settings_of(args: argparse.Namespace) -> InterpretSettings:
    """Convert parsed options to settings.

    Raises:
        UserError: names are missing, duplicate or not valid as folder names; an option does not
            apply to the mode.
    """
    for mode, names in MODE_OPTIONS.items():
        if given := [name for name in names if vars(args)[name] is not None]:
            if args.mode not in (mode, "both"):
                raise UserError(
                    f"--{given[0]} does not apply to --mode {args.mode}. Remove it, or use --mode "
                    "both."
                )
    size = args.image_size or DATASETS[args.dataset].image_size
    return InterpretSettings(
        networks=_networks(args.weights, args.name),
        eval_weights=args.eval_weights,
        statistics=input_statistics.given(args),
        mode=args.mode,
        units=args.units,
        classes=args.classes,
        images=0 if args.mode == "visualize" else args.images or IMAGES,
        start=args.start,
        dataset=args.dataset,
        data=args.data,
        image_size=size,
        image_range=args.image_range,
        eps=args.eps,
        steps=args.steps,
        step_size=args.step_size or size / REFERENCE_SIZE,
        use_best=args.use_best,
        seed=args.seed,
        batch_size=args.batch_size,
        device=args.device,
        output=args.output,
    )


def _networks(weights: list[str], given: list[str] | None) -> dict[str, str]:
    names = given or [short_name(each) for each in weights]
    if len(names) != len(weights):
        raise UserError(
            f"--name has {len(names)} names for {len(weights)} networks. Give one name per network."
        )
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--name: two networks are called '{duplicates[0]}'. Give different names.")
    if invalid := [name for name in names if not name.strip(". ") or set(name) & set("/\\\0")]:
        raise UserError(
            f"--name '{invalid[0]}' is not valid as a folder name. Use a name without slashes."
        )
    return dict(zip(names, weights, strict=True))
