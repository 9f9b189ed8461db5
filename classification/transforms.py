"""Every image transform. Randomness comes from a passed `torch.Generator`."""

import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad


def random_shift(x: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Move each image by its own whole number of pixels in [-pad, pad], both ways; zeros come in.

    Args:
        x: images `(N, C, H, W)`.
        pad: largest shift, pixels, at least 0.
        generator: on the CPU; two numbers per image are drawn.

    Returns:
        Images of the same shape.
    """
    n, _, height, width = x.shape
    down, right = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
    rows = down.view(n, 1, 1) + torch.arange(height, device=x.device).view(1, height, 1)
    columns = right.view(n, 1, 1) + torch.arange(width, device=x.device).view(1, 1, width)
    images = torch.arange(n, device=x.device).view(n, 1, 1)
    shifted = zero_pad(x, [pad] * 4).permute(0, 2, 3, 1)[images, rows, columns]  # (N, H, W, C)
    return shifted.permute(0, 3, 1, 2)
