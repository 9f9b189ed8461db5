"""Color jitter, lighting and conversion to float32, in batches on the device of the network.

The process that loads an image draws its random numbers with `draw_numbers`. The process of the
network applies them to batches with `finish`. Images are therefore sent as uint8, a quarter of the
bytes of float32.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2 as tv
from torchvision.transforms.v2 import functional as tvf

# PCA of ImageNet's RGB values in [0, 1] for color noise, with the robustness library's numbers
PCA_EIGENVALUES = (0.2175, 0.0188, 0.0045)
PCA_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)  # one eigenvector per column
LIGHTING_STD = 0.05
JITTER = 0.1  # strength of the jitter in brightness, contrast and saturation


def draw_numbers() -> Tensor:
    """Draw the random numbers of one image from PyTorch's global generator.

    The draws are torchvision's for `ColorJitter`, followed by the robustness library's for
    `Lighting`.

    Returns:
        `(12,)` float32, the arguments of `finish` for one image. Each of three steps has a factor
        for the image, a weight for its mean gray level, and a weight for its gray levels. A step
        changes the brightness (f, 0, 0), the contrast (f, 1 - f, 0) or the saturation
        (f, 0, 1 - f), in random order. The last three numbers are added to R, G and B.
    """
    limits = [1 - JITTER, 1 + JITTER]
    order, *factors, _ = tv.ColorJitter.get_params(limits, limits, limits, None)
    steps = torch.zeros(3, 3)
    for step, change in zip(steps, [i for i in order.tolist() if i < 3], strict=True):
        step[0] = factors[change]
        if change:
            step[change] = 1 - factors[change]
    alpha = torch.empty(3).normal_(0, LIGHTING_STD)
    shift = (torch.tensor(PCA_EIGENVECTORS) * alpha * torch.tensor(PCA_EIGENVALUES)).sum(1)
    return torch.cat([steps.flatten(), shift])


def finish(pixels: Tensor, numbers: Tensor | None, device: torch.device | str) -> Tensor:
    """Copy images to a device, convert them to float32 in [0, 1], and change their colors.

    The formulas equal torchvision's `ColorJitter` for float images, and the robustness library's
    `Lighting`. For uint8 images, torchvision rounds down to a multiple of 1/255 after
    each step. Its results differ by less than 3.4/255, and by 1.4/255 on average. On a CPU, the
    result for an image does not depend on the other images of the batch. On a GPU, this holds up
    to rounding errors of float32.

    Args:
        pixels: images `(N, 3, H, W)`, uint8 in [0, 255] or float32 in [0, 1].
        numbers: random numbers of the images, `(N, 12)` float32, from `draw_numbers`; None: do not
            change the colors.
        device: device of the result. Copies from pinned memory to a GPU are asynchronous.

    Returns:
        Images `(N, 3, H, W)`, float32 in [0, 1].
    """
    pixels = pixels.to(device, non_blocking=True)
    if numbers is None:
        return _to_unit(pixels)
    numbers = numbers.to(device, non_blocking=True)
    # One image fits into the cache of a CPU core.
    count = 1 if pixels.device.type == "cpu" else len(pixels)
    parts = zip(pixels.split(count), numbers.split(count), strict=True)
    return torch.cat([_recolor(_to_unit(x), n) for x, n in parts])


def _to_unit(x: Tensor) -> Tensor:
    return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


def _recolor(x: Tensor, numbers: Tensor) -> Tensor:
    """Apply the steps and the shift of `draw_numbers` to float32 images in [0, 1]."""
    for step in numbers[:, :9].view(-1, 3, 3, 1, 1, 1).unbind(1):
        factor, of_mean, of_gray = step.unbind(1)
        gray = tvf.rgb_to_grayscale(x)
        mean = gray.mean((1, 2, 3), keepdim=True)
        x = (x * factor).add_(gray.mul_(of_gray).add_(mean.mul_(of_mean))).clamp_(0, 1)
    # The robustness library does not clamp. Attacks need images in [0, 1].
    return x.add_(numbers[:, 9:].view(-1, 3, 1, 1)).clamp_(0, 1)
