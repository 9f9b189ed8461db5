"""Datasets: one row each. `load` gives images in [0, 1] and only then imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_backbones.errors import UserError
from robust_backbones.zoo import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import Tensor

# Of scikit-learn's 1,797 digits in their own order. The set goes writer by writer, so cutting it
# once leaves the test digits to writers who are mostly not in the training part.
DIGITS_TRAIN = 1437


@dataclass(frozen=True)
class Dataset:
    """One classification task.

    Attributes:
        classes: number of classes.
        image_size: height and width of the images, pixels.
        mean, std: RGB statistics that a classifier of it normalises with, for images in [0, 1].
        read: `(split)` -> images `(N, 3, H, W)` float in [0, 1] and labels `(N,)` int64.
        splits: what `read` takes; the test split is for the final figures only.
    """

    classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[str], tuple[Tensor, Tensor]]
    splits: tuple[str, ...] = ("train", "test")


def _read_digits(split: str) -> tuple[Tensor, Tensor]:
    """scikit-learn's real handwritten digits, 8x8 grey enlarged to 32x32 with equal channels."""
    import torch
    from sklearn.datasets import load_digits
    from torch.nn.functional import interpolate

    digits = load_digits()
    rows = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    grey = torch.from_numpy(digits.images[rows]).float().unsqueeze(1) / 16  # 0..16 in the source
    # Enlarging by 4 has binary fractions as weights: exact, hence the same fingerprint anywhere.
    images = interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    return images.repeat(1, 3, 1, 1), torch.from_numpy(digits.target[rows]).long()


DATASETS = {
    # ImageNet's statistics, so that the weights fit the detector's input contract as they are.
    "digits": Dataset(10, 32, IMAGENET_MEAN, IMAGENET_STD, _read_digits),
}


def load(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, H, W)` float RGB in [0, 1] and labels `(N,)` int64, in the dataset's order.

    Raises:
        UserError: `name` is not in `DATASETS`, or the dataset has no such split.
    """
    if name not in DATASETS:
        raise UserError(f"dataset '{name}' is unknown; one of: {', '.join(DATASETS)}.")
    row = DATASETS[name]
    if split not in row.splits:
        raise UserError(f"split '{split}' is unknown to {name}; one of: {', '.join(row.splits)}.")
    return row.read(split)


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """SHA-256 (hex) of the shape, the float32 values and the labels, in their order."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(images.cpu().contiguous().numpy().astype("<f4").tobytes())
    digest.update(labels.cpu().contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()
