"""Placeholder for `detectron2._C`, Detectron2's C++ extension, where it is not built.

`install-detectron2` copies this file to `detectron2/_C.py`, so it imports nothing of this project.
Functions of the extension raise an error that explains the fix.
"""

import functools
from typing import Any, NoReturn

import torch

MISSING = True


def get_compiler_version() -> str:
    """Return the compiler for Detectron2's environment report."""
    return "not built"


get_cuda_version = get_compiler_version


def has_cuda() -> bool:
    """Return whether the extension was built for GPUs."""
    return False


def _refuse(name: str, *_args: object, **_kwargs: object) -> NoReturn:
    raise RuntimeError(
        f"{name} requires Detectron2's C++ extension (rotated boxes, deformable convolution), "
        "which is not installed. Build it with: robust-backbones install-detectron2 --official"
    )


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # the import system requests these names, not a user
        raise AttributeError(name)
    _refuse(f"detectron2._C.{name}")


# Operators that the extension registers with PyTorch.
for _operator in (
    "nms_rotated",
    "box_iou_rotated",
    "roi_align_rotated_forward",
    "roi_align_rotated_backward",
):
    setattr(torch.ops.detectron2, _operator, functools.partial(_refuse, _operator))
