"""State of PyTorch's TF32 flags."""

import torch


def flags() -> tuple[bool, bool]:
    """Return whether float32 convolutions and matrix products may use TF32."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def reset() -> None:
    """Set the flags to PyTorch's defaults."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
