"""Time works and choose a device for benchmarks."""

import torch

from classification.training.launch import choose_device
from robust_backbones.core.errors import user_errors
from robust_backbones.core.timing import medians, seconds, take_turns

__all__ = ["chosen", "medians", "seconds", "take_turns"]


def chosen(name: str) -> torch.device:
    """The device of a `--device` option.

    Raises:
        SystemExit: torch cannot use the device (exit code 2).
    """
    with user_errors():
        return choose_device(name)
