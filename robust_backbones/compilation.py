"""Check whether `torch.compile` can run."""

import importlib.util
import os
import shutil

import torch

from robust_backbones.core.errors import UserError

CAPABILITY = (7, 0)  # smallest compute capability that Triton supports


def compile_problem(device: torch.device) -> str:
    """Return why `torch.compile` cannot run for a device; empty if it can."""
    if device.type != "cuda":
        compilers = (os.environ.get("CXX", "g++"), "clang++")
        return "" if any(map(shutil.which, compilers)) else "no C++ compiler found"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is too old for Triton"
    return ""


def check_compile(key: str, device: torch.device) -> None:
    """Check that `torch.compile` can run.

    Args:
        key: configuration key that requests it, for the message.
        device: device of the network.

    Raises:
        UserError: it cannot run.
    """
    if problem := compile_problem(device):
        raise UserError(f"{key} True: torch.compile cannot run here: {problem}. Use {key} False.")
