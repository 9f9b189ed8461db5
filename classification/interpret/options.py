"""The options of `classification.interpret`, and what they decide together."""

import argparse
from pathlib import Path

# torch, and what imports it, waits for the run: --help is to come at once.
from classification import options
from classification.datasets.specs import DATASETS
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError

MODES = ("visualise", "invert", "both")
STARTS = ("noise", "image")
CLASSES = 5  # that are shown where nothing is said
IMAGES = 5
# The authors' steps have length 1 on images of this size, pixels. Equal pictures of other sizes
# differ in L2 norm as their sides do.
REFERENCE_SIZE = 224
# Of each mode: the options that only it understands.
OWN = {"visualise": ("units", "classes"), "invert": ("images",)}


def parser(description: str) -> Parser:
    """Options without a default of their own are absent unless given."""
    p = Parser(
        "python -m classification.interpret",
        description=description.split("\n")[0],
        argument_default=argparse.SUPPRESS,
        epilog="A finished run is not done again.",
    )
    what = p.add_argument_group("what").add_argument
    what(
        "--weights",
        nargs="+",
        required=True,
        help="networks, one or more, a row of the figure each: paths, published names "
        "(robust://resnet50_l2_eps3) or URLs",
    )
    what("--name", nargs="+", help="what to call them, one name each (default: as their files)")
    what(
        "--mode",
        choices=MODES,
        default="both",
        help="visualise: raise a unit or a class; invert: match the representation of test images",
    )
    what(
        "--units",
        type=options.whole,
        nargs="+",
        help="of the representation (what the last layer is fed with) to visualise, numbers from "
        "0 on (default: none)",
    )
    what(
        "--classes",
        type=options.whole,
        nargs="+",
        help=f"to visualise, numbers from 0 on (default: the first {CLASSES}, if no --units are "
        "given)",
    )
    what(
        "--images",
        type=options.count,
        help=f"test images to invert, chosen by --seed, a count (default: {IMAGES})",
    )
    what(
        "--start",
        choices=STARTS,
        default="noise",
        help="from grey noise, or from other test images",
    )
    what(
        "--judge",
        help="another classifier of the same classes, which says what it sees in the pictures: as "
        "--weights (default: none)",
    )
    what(
        "--dataset",
        choices=tuple(DATASETS),
        default="imagenet",
        help="its test split is used; visualising from noise needs no data",
    )
    what(
        "--data",
        help="where the data set lies: its folder or the one above it (default: "
        "$ROBUST_BACKBONES_DATA; embedded ones need none)",
    )
    what(
        "--image-size",
        type=options.count,
        help="height and width of the images, pixels (default: the dataset's)",
    )
    how = p.add_argument_group("how").add_argument
    how("--steps", type=options.count, default=1000, help="gradient steps, a count")
    how(
        "--step-size",
        type=options.positive,
        help="L2 length of a step over the whole image, for pixels in [0, 1] (default: image size "
        f"/ {REFERENCE_SIZE})",
    )
    how(
        "--eps",
        type=options.positive,
        default=1000.0,
        help="L2 radius around the start; the default binds no image below 577 pixels",
    )
    how(
        "--use-best",
        action="store_true",
        default=False,
        help="take each picture's best step, not the last one",
    )
    how("--seed", type=options.seed, default=0, help="of the noise and the images, a number")
    run = p.add_argument_group("running").add_argument
    run("--batch-size", type=options.count, default=32, help="images at once, a count")
    run("--device", help="torch device (default: cuda if there is one, else cpu)")
    run("--output", type=Path, required=True, help="folder for this run, a path")
    return p


def check(args: argparse.Namespace) -> None:
    """Find what does not go together.

    Raises:
        UserError: so it is.
    """
    names = networks(args)
    if len(names) != len(args.weights):
        raise UserError(
            f"--name has {len(names)} names, --weights has {len(args.weights)} "
            "networks; give one name each."
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two networks are called '{twice[0]}'; tell them apart by --name.")
    if bad := [name for name in names if not name.strip(". ") or set(name) & set("/\\\0")]:
        raise UserError(f"--name '{bad[0]}' cannot be a folder; leave out slashes.")
    for mode, own in OWN.items():
        if args.mode in (mode, "both"):
            continue
        for name in (name for name in own if hasattr(args, name)):
            raise UserError(
                f"--{name} is not for --mode {args.mode}; leave it out, or choose --mode both."
            )


def networks(args: argparse.Namespace) -> list[str]:
    """What the networks are called."""
    return getattr(args, "name", None) or [options.label(each) for each in args.weights]


def columns(args: argparse.Namespace, classes: int) -> list[tuple[str, int]]:
    """What is visualised: `("class", 3)` and `("unit", 12)`, the classes first.

    Args:
        classes: of the network that has the fewest.
    """
    if args.mode == "invert":
        return []
    units = getattr(args, "units", [])
    shown = getattr(args, "classes", [] if units else range(min(CLASSES, classes)))
    wanted = [("class", k) for k in shown] + [("unit", k) for k in units]
    return list(dict.fromkeys(wanted))  # each once


def inverted(args: argparse.Namespace) -> int:
    """Number of images to invert."""
    return 0 if args.mode == "visualise" else getattr(args, "images", IMAGES)


def image_size(args: argparse.Namespace) -> int:
    """Pixels."""
    return getattr(args, "image_size", DATASETS[args.dataset].image_size)


def step_size(args: argparse.Namespace) -> float:
    return getattr(args, "step_size", image_size(args) / REFERENCE_SIZE)
