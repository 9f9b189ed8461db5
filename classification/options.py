"""Types of command-line values, for `add_argument(type=...)`, and options that commands share.

This module imports no torch, because the command lines import it.
"""

import re
from collections.abc import Callable

from robust_backbones.core.cli import count, number, whole
from robust_backbones.core.eps import parse_number

__all__ = [
    "add_running",
    "batch",
    "count",
    "fraction",
    "label",
    "number",
    "positive",
    "radius",
    "seed",
    "share",
    "whole",
]


share = number(parse_number, lambda v: 0 <= v < 1, "a number in [0, 1)")
batch = number(int, lambda v: v >= 2, "a whole number of at least 2 (BatchNorm needs two)")
seed = number(int, lambda v: 0 <= v < 2**31, "a whole number in [0, 2**31)")
radius = number(parse_number, lambda v: v >= 0, "a finite number of at least 0")
positive = number(parse_number, lambda v: v > 0, "a finite number above 0")
fraction = number(parse_number, lambda v: 0 < v < 1, "a number between 0 and 1")


def label(weights: str) -> str:
    """Default name of a network: the name of its file without the suffix.

    Args:
        weights: a path, a published name or a URL.
    """
    *above, name = weights.removeprefix("robust://").rstrip("/").split("/")
    short = re.sub(r"\.(pt|pth|ckpt|pkl|safetensors)$", "", name)
    # Pretraining names every file checkpoint.pt, so the folder names the network.
    return above[-1] if short == "checkpoint" and above else short


def add_running(add: Callable) -> None:
    """Add the options on how a training command runs.

    Args:
        add: `add_argument` of a parser or of an option group.
    """
    add(
        "--save-seconds",
        type=radius,
        metavar="SECONDS",
        default=600.0,
        help="longest time between two checkpoints",
    )
    add("--device", metavar="NAME", help="torch device (default: cuda if available, else cpu)")
    add(
        "--workers",
        type=whole,
        metavar="N",
        default=0,
        help="processes that read images, per training process; 0: the training process reads",
    )
    add(
        "--deterministic",
        action="store_true",
        help="give equal numbers in every run on the same GPUs; slower",
    )
