"""Types of command-line values, for `add_argument(type=...)`.

This module imports no torch, because the command lines import it.
"""

import re

from robust_backbones.core.cli import count, number, whole
from robust_backbones.core.eps import parse_number

__all__ = [
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
