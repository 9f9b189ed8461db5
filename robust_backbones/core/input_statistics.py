"""Input statistics: the mean and std that a network was trained with, and where they come from.

This module does not import torch, because command-line parsers import it.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

from robust_backbones.core.cli import factor, proportion
from robust_backbones.core.errors import UserError

Channels = tuple[float, float, float]

FILE, GIVEN, ZOO, DATASET, ASSUMED = "file", "given", "zoo", "dataset", "assumed"
SOURCES = {  # where statistics come from
    FILE: "from the weights' file",
    GIVEN: "given by the user",
    ZOO: "from the table of published models",
    DATASET: "the dataset's",
    ASSUMED: "assumed, because the weights' file has none",
}
# Largest difference between equal statistics. Files round them to 3 to 8 decimals.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class InputStatistics:
    """Mean and standard deviation by which a network normalizes RGB images in [0, 1].

    Attributes:
        mean: mean of each RGB channel, in [0, 1].
        std: standard deviation of each RGB channel, in (0, 1].
        source: where they come from, a key of `SOURCES`.
    """

    mean: Channels
    std: Channels
    source: str = GIVEN

    def of(self, source: str) -> "InputStatistics":
        """Return the same statistics with another source."""
        return replace(self, source=source)

    def equal(self, other: "InputStatistics") -> bool:
        """Return whether the numbers are the same, except for rounding."""
        pairs = zip((*self.mean, *self.std), (*other.mean, *other.std), strict=True)
        return all(abs(a - b) <= TOLERANCE for a, b in pairs)

    @property
    def pixels(self) -> tuple[list[float], list[float]]:
        """`MODEL.PIXEL_MEAN` and `MODEL.PIXEL_STD` of Detectron2, for pixels in [0, 255]."""
        mean, std = ([round(255 * value, 3) for value in part] for part in (self.mean, self.std))
        return mean, std

    @property
    def options(self) -> str:
        """Command-line options that give these statistics."""
        name = next((name for name, preset in PRESETS.items() if self.equal(preset)), None)
        return (
            f"--statistics {name}" if name else f"--mean {_join(self.mean)} --std {_join(self.std)}"
        )

    def to_json(self) -> dict:
        """Return mean, std and source in plain JSON types."""
        return {"mean": list(self.mean), "std": list(self.std), "source": self.source}

    def __str__(self) -> str:
        return f"mean {_join(self.mean)}, std {_join(self.std)}"


def _join(values: Channels) -> str:
    return " ".join(f"{value:.6g}" for value in values)


PRESETS = {
    # torchvision's and timm's models of ImageNet: timm/data/constants.py, IMAGENET_DEFAULT_*.
    "imagenet": InputStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # robustness/datasets.py, classes CIFAR and RestrictedImageNet.
    "cifar10": InputStatistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "restricted_imagenet": InputStatistics((0.4717, 0.4499, 0.3837), (0.2600, 0.2516, 0.2575)),
    # src/utils/transfer_datasets.py of the paper's code.
    "cifar100": InputStatistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    # timm/data/constants.py, IMAGENET_INCEPTION_* and OPENAI_CLIP_*.
    "half": InputStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": InputStatistics(
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    # Images in [0, 1] without normalization.
    "none": InputStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
IMAGENET = PRESETS["imagenet"]


def choose(
    stated: InputStatistics | None,
    given: InputStatistics | None,
    file: object,
    usual: InputStatistics = IMAGENET,
) -> InputStatistics:
    """Return the statistics of a network. Assume the usual ones if none are stated.

    Args:
        stated: statistics in the file; None if it has none. A converted file may have statistics
            that the conversion assumed, which `given` replaces.
        given: statistics from the user or from the table of published models.
        file: name of the file in the error message.
        usual: statistics of most networks of this architecture.

    Raises:
        UserError: the file states other statistics than `given`.
    """
    if stated is None or stated.source == ASSUMED:
        return given or stated or usual.of(ASSUMED)
    if given and not given.equal(stated):
        published = given.source == ZOO
        other = "the published model has" if published else "the options state"
        fix = "Check the file." if published else "Omit --mean, --std and --statistics."
        raise UserError(f"{file}: the file states {stated}, but {other} {given}. {fix}")
    return stated


def announce(
    used: InputStatistics, file: object, fix: str = "Give --mean and --std, or --statistics PRESET."
) -> None:
    """Print one line if the statistics of a network are not in its file.

    Args:
        used: statistics that are used.
        file: name of the file.
        fix: sentence that says how to state the statistics.
    """
    if used.source == ASSUMED:
        print(f"warning: {assumption(used, file, fix)}", file=sys.stderr, flush=True)
    elif used.source in (GIVEN, ZOO):
        print(
            f"mean and std are not stated in {file}: {used} ({SOURCES[used.source]}).", flush=True
        )


def warn_if_assumed(used: InputStatistics, file: object) -> None:
    """Warn the caller of a function of the Python API if the statistics are assumed."""
    if used.source == ASSUMED:
        fix = "Pass statistics=InputStatistics(mean, std)."
        warnings.warn(assumption(used, file, fix), stacklevel=3)


def assumption(used: InputStatistics, file: object, fix: str) -> str:
    """Return the warning that statistics are assumed. Arguments: see `announce`."""
    whose = "ImageNet's" if used.equal(IMAGENET) else str(used)
    return f"mean and std are not stated in {file}: {whose} are assumed. {fix}"


def add_options(add: Callable) -> None:
    """Add the options that state the statistics of weights.

    Args:
        add: `add_argument` of a parser or an option group.
    """
    rgb = ("R", "G", "B")
    add(
        "--mean",
        type=proportion,
        nargs=3,
        metavar=rgb,
        help="mean of the RGB channels for images in [0, 1], if the weights do not contain it "
        "(default: from the weights; otherwise ImageNet's, with a warning)",
    )
    add(
        "--std",
        type=factor,
        nargs=3,
        metavar=rgb,
        help="standard deviation of the RGB channels, with --mean",
    )
    add(
        "--statistics",
        choices=tuple(PRESETS),
        help="preset for --mean and --std; half: 0.5 and 0.5; none: images in [0, 1] without "
        "normalization (default: see --mean)",
    )


def given(args: argparse.Namespace) -> InputStatistics | None:
    """Return the statistics that the options state, or None.

    Raises:
        UserError: the options contradict each other.
    """
    if (args.mean is None) != (args.std is None):
        there, missing = ("mean", "std") if args.std is None else ("std", "mean")
        raise UserError(f"--{there} requires --{missing}. Give both, or --statistics PRESET.")
    if args.mean is None:
        return PRESETS[args.statistics] if args.statistics else None
    if args.statistics:
        raise UserError(
            f"--statistics {args.statistics}: not allowed with --mean and --std. Remove "
            "--statistics, or --mean and --std."
        )
    return InputStatistics(tuple(args.mean), tuple(args.std))
