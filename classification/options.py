"""Command-line values: each parser takes the text and says what is allowed when it is not.

For argparse: `add_argument("--eps", type=options.radius)`. Imports no torch, so that --help comes
at once.
"""

import re
from fractions import Fraction

from robust_backbones.core.cli import count, number, whole
from robust_backbones.core.errors import UserError

__all__ = [
    "batch",
    "check_radius",
    "count",
    "fraction",
    "label",
    "number",
    "positive",
    "radius",
    "real",
    "seed",
    "share",
    "whole",
]


def real(text: str) -> float:
    """A number as people write L-infinity radii: `4/255`, `0.5`, `1e-3`.

    Raises:
        ValueError, ArithmeticError: it is none, or not finite.
    """
    return float(Fraction(text))


share = number(real, lambda v: 0 <= v < 1, "a number in [0, 1)")
batch = number(int, lambda v: v >= 2, "a whole number of at least 2 (BatchNorm needs two)")
seed = number(int, lambda v: 0 <= v < 2**31, "a whole number in [0, 2**31)")
radius = number(real, lambda v: v >= 0, "a finite number of at least 0")
positive = number(real, lambda v: v > 0, "a finite number above 0")
fraction = number(real, lambda v: 0 < v < 1, "a number between 0 and 1")


def check_radius(option: str, constraint: str, eps: float) -> None:
    """Refuse a radius that was meant in another unit.

    Args:
        option: the option's name, for the message.
        constraint: `"l2"` (any radius will do) or `"linf"`.
        eps: the radius, for pixels in [0, 1].

    Raises:
        UserError: an L-infinity ball that covers every image.
    """
    if constraint == "linf" and eps >= 1:
        raise UserError(
            f"{option} {eps:g} for linf covers all of [0, 1]; did you mean {eps:g}/255?"
        )


def label(weights: str) -> str:
    """What a network is called unless the user says it: the file's name without its ending.

    Args:
        weights: a path, a published name or a URL.
    """
    *above, name = weights.removeprefix("robust://").rstrip("/").split("/")
    short = re.sub(r"\.(pt|pth|ckpt|pkl|safetensors)$", "", name)
    # Runs of pretraining are known by their folder: all their files are called checkpoint.pt.
    return above[-1] if short == "checkpoint" and above else short
