"""Set the precision of a computation: TF32, autocast and loss scaling.

Commands turn TF32 off when they start. In the precision `tf32`, only training steps and features
use TF32, so that evaluations and probes always compute in float32.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.precision import DEFAULT, PRECISIONS, TF32

CAPABILITY = (8, 0)  # compute capability of Ampere, the first GPUs with TF32
OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # if it is 0, NVIDIA's libraries ignore the flags of PyTorch


def set_tf32(allowed: bool) -> None:
    """Set whether float32 convolutions and matrix products may round their inputs to TF32.

    By default, PyTorch allows it for convolutions only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch 2.9 to 2.10 announce the end of `allow_tf32`
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
    # The functions above also set `fp32_precision` of matrix products. They set the value for
    # convolutions to "tf32" or "none". torch.compile fails if only `fp32_precision` is set (pytorch
    # issue 166387).
    for kind in ("conv", "rnn"):
        operation: Any = getattr(torch.backends.cudnn, kind, None)  # missing before PyTorch 2.9
        if hasattr(operation, "fp32_precision"):
            operation.fp32_precision = TF32 if allowed else "ieee"


@contextlib.contextmanager
def tf32(precision: str) -> Iterator[None]:
    """Allow TF32 in a block if the precision is `tf32`. Otherwise, the block changes nothing.

    Unlike autocast, the block must also contain the backward passes.
    """
    if precision != TF32:
        yield
        return
    set_tf32(True)
    try:
        yield
    finally:
        set_tf32(False)


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Turn autocast and TF32 off in a block.

    Args:
        device_type: type of the device of the computation, such as "cuda".
    """
    allowed = torch.get_float32_matmul_precision() == "high"
    set_tf32(False)
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        if allowed:
            set_tf32(True)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the dtype for autocast, or None for `float32` and `tf32`.

    Args:
        precision: key of `PRECISIONS`.
    """
    return None if precision in (DEFAULT, TF32) else getattr(torch, precision)


def loss_scaler(precision: str, device_type: str) -> torch.amp.GradScaler:
    """Create the loss scaler of a training run, which is enabled for float16 only.

    Other precisions need no scaling. The smallest positive number of float16 is 6e-8.

    Args:
        precision: key of `PRECISIONS`.
        device_type: type of the network's device, such as `cuda`.
    """
    return torch.amp.GradScaler(device_type, enabled=precision == "float16")


def check_precision(option: str, precision: str, device: torch.device) -> None:
    """Check that the precision exists, and that the device supports it.

    Args:
        option: name of the option or configuration key, for the message.
        precision: key of `PRECISIONS`.
        device: device of the network.

    Raises:
        UserError: the precision is unknown, or it is `tf32`, and the device has no TF32, or it is
            turned off.
    """
    if precision not in PRECISIONS:
        raise UserError(f"{option} '{precision}' is unknown. {choose_from(precision, PRECISIONS)}")
    if precision != TF32:
        return
    if device.type != "cuda":
        problem = f"the device {device} has no TF32"
    elif torch.cuda.get_device_capability(device) < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        problem = f"{name} has no TF32, because it is older than NVIDIA's Ampere GPUs"
    elif os.environ.get(OVERRIDE) == "0":
        problem = f"the environment variable {OVERRIDE}=0 turns TF32 off"
    else:
        return
    raise UserError(f"{option} {TF32}: {problem}. Use {option} {DEFAULT}.")
