"""Image transforms whose randomness depends only on one seed per image.

An augmentation is a function `(images, seeds, size) -> (pixels, colors)`:
- `images`: tensor `(n, 3, H, W)`, uint8 in [0, 255] or float32 in [0, 1], or a list of PIL RGB
  images of any sizes.
- `seeds`: one seed per image, `(n,)` uint64, from `image_seeds`.
- `size`: height and width of the result in pixels.
- `pixels`: augmented images `(n, 3, size, size)`, uint8 in [0, 255] or float32 in [0, 1].
- `colors`: random numbers for `colors.finish`, which changes the colors, `(n, 12)` float32; None:
  the colors are final.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad as zero_pad
from torchvision import tv_tensors
from torchvision.transforms import v2 as tv
from torchvision.transforms.v2 import functional as tvf

from classification import colors

Augmented = tuple[Tensor, Tensor | None]  # pixels and colors

NO_IMAGE = 2**63  # lower positions belong to images; positions from here on are for other seeds
TEST_SCALE = 256 / 224  # shorter side before the center crop, divided by the size of the crop


def image_seeds(seed: int, epoch: int, positions: Any) -> np.ndarray:
    """Derive one uint64 seed per image of an epoch.

    Args:
        seed: seed of the run, at least 0.
        epoch: index of the epoch.
        positions: position of each image in the order of the epoch, `(n,)` int.
    """
    base = _mix(_mix(np.array([seed], np.uint64)) + np.array([epoch], np.uint64))
    return _mix(base + np.asarray(positions).astype(np.uint64))


def draw(seeds: np.ndarray, count: int) -> np.ndarray:
    """Draw `(n, count)` uniform float64 numbers in [0, 1). Row i depends only on seed i."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(seeds[:, None] + steps) >> np.uint64(11)) / 2.0**53


def _mix(z: np.ndarray) -> np.ndarray:
    """Hash uint64 numbers with the last step of splitmix64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def centered(images: Tensor | Iterable, size: int) -> Tensor:
    """Resize and center-crop test images to `(n, 3, size, size)`, and keep their dtype.

    Images that already have this size are not resized or cropped.
    """
    return _fit(images, size, round(size * TEST_SCALE))


def _fit(images: Tensor | Iterable, size: int, shorter: int) -> Tensor:
    """Resize the shorter side to `shorter` pixels, and crop the center to `(n, 3, size, size)`.

    Images that already have the size of the crop are not resized.
    """
    if isinstance(images, Tensor) and images.shape[2:] == (size, size):
        return images
    return torch.stack([_fit_one(image, size, shorter) for image in images])


def _fit_one(image: Tensor | Image.Image, size: int, shorter: int) -> Tensor:
    image = _as_pil(image)
    height, width = image.shape[1:] if isinstance(image, Tensor) else (image.height, image.width)
    if (height, width) != (size, size):
        image = tvf.center_crop(tvf.resize(image, shorter, antialias=True), [size, size])
    return _as_tensor(image)


def _as_tensor(image: Tensor | Image.Image) -> Tensor:
    tensor = image if isinstance(image, Tensor) else tvf.pil_to_tensor(image)
    return tensor.as_subclass(Tensor)


def _as_pil(image: Tensor | Image.Image) -> Tensor | Image.Image:
    """Convert uint8 tensors to PIL images, so that all images are resized in the same way.

    Images from the fast decoder (`ImageSplit.decode`) remain tensors, because their pixels differ
    from PIL's anyway.
    """
    if isinstance(image, tv_tensors.Image):
        return image
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return image


def downscale(image: Tensor | Image.Image, shorter: int) -> Tensor | Image.Image:
    """Reduce the shorter side of an image to `shorter` pixels. Smaller images are unchanged.

    Args:
        image: PIL image, or tensor `(3, H, W)`, uint8 or float32. The result has the same type.
        shorter: maximum length of the shorter side in pixels.
    """
    sides = image.shape[1:] if isinstance(image, Tensor) else image.size
    if min(sides) <= shorter:
        return image
    small = tvf.resize(_as_pil(image), shorter, antialias=True)
    converted = isinstance(image, Tensor) and not isinstance(small, Tensor)
    return tvf.pil_to_tensor(small) if converted else small


def _plain(images: list, seeds: np.ndarray, size: int) -> Augmented:
    return _fit(images, size, size), None


def _crop_flip(images: list, seeds: np.ndarray, size: int, *, pad: int, flip: bool) -> Augmented:
    """Pad with zeros, crop at random, and flip half of the images horizontally."""
    x = _fit(images, size, size)
    numbers = draw(seeds, 3)
    down, right = torch.from_numpy((numbers[:, :2] * (2 * pad + 1)).astype(np.int64).T)
    x = crop(x, down, right, pad)
    if flip:
        mirrored = torch.from_numpy(numbers[:, 2] < 0.5)
        x[mirrored] = x[mirrored].flip(3)
    return x, None


def crop(x: Tensor, down: Tensor, right: Tensor, pad: int) -> Tensor:
    """Pad images with zeros, and crop each image to its original size.

    Args:
        x: images `(N, C, H, W)`.
        down, right: vertical and horizontal offset of each crop in pixels, `(N,)` int64 in
            [0, 2 * pad]. An offset of `pad` does not move the image.
        pad: width of the padding on each side in pixels.
    """
    height, width = x.shape[2:]
    windows = zero_pad(x, [pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x), device=x.device), :, down, right]


def _imagenet(size: int) -> list:
    return [tv.RandomResizedCrop(size), tv.RandomHorizontalFlip()]


def _cifar_color(size: int) -> list:
    """Return the `robustness` library's augmentation for CIFAR."""
    return [
        tv.RandomCrop(size, padding=4),
        tv.RandomHorizontalFlip(),
        tv.ColorJitter(0.25, 0.25, 0.25),
        tv.RandomRotation(2),
    ]


def _one_by_one(
    images: list,
    seeds: np.ndarray,
    size: int,
    *,
    steps: Callable[[int], list],
    recolor: bool = False,
    fit: bool = False,
) -> Augmented:
    """Apply torchvision's transforms to each image, with the image's seed in the global generator.

    Args:
        images, seeds, size: arguments of every augmentation; see the module's description.
        steps: function that returns the transforms for a size.
        recolor: whether to draw numbers for `colors.finish`.
        fit: whether to resize and crop the images to `size` first.
    """
    if fit:
        images = list(_fit(images, size, size))
    pipeline = tv.Compose(steps(size))
    generator = torch.default_generator  # `torch.manual_seed` would also seed the GPUs
    before, pixels, numbers = generator.get_state(), [], []
    try:
        for image, seed in zip(images, seeds.tolist(), strict=True):
            generator.manual_seed(seed)
            pixels.append(_as_tensor(pipeline(_as_pil(image))))
            if recolor:
                numbers.append(colors.draw_numbers())
    finally:
        generator.set_state(before)
    return torch.stack(pixels), torch.stack(numbers) if recolor else None


AUGMENTATIONS: dict[str, Callable[..., Augmented]] = {
    "none": _plain,
    "shift2": partial(_crop_flip, pad=2, flip=False),
    "crop4_flip": partial(_crop_flip, pad=4, flip=True),
    "crop4_flip_color": partial(_one_by_one, steps=_cifar_color, fit=True),
    "imagenet": partial(_one_by_one, steps=_imagenet, recolor=True),  # for published models
    "imagenet_plain": partial(_one_by_one, steps=_imagenet),
}
