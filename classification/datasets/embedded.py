"""Read the small real datasets that installed packages contain.

Each reader takes `(split, root)`, where the split is `train` or `test`, and returns images, labels
and class names. `root` is not used.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage import data
from torch.nn.functional import interpolate

from classification.datasets.image_files import SplitContents
from robust_backbones.core.digits import read_digits as digits_of_sklearn

# Number of training images. scikit-learn's 1,797 digits are ordered by writer. Therefore most
# writers of the test digits, which are the last 360, are not in the training split.
DIGITS_TRAIN = 1437

# Maps a class to a photograph in scikit-image. Each photograph has at least 512x512 pixels.
TEXTURES = {
    "brick": "brick",
    "grass": "grass",
    "gravel": "gravel",
    "moon": "moon",
    "stars": "hubble_deep_field",
    "tissue": "immunohistochemistry",
}
PATCH = 32  # height and width of a patch, pixels
# First column, end column and stride of the patches in the first 512 rows of each photograph.
# Training patches overlap. A gap as wide as a patch separates them from the test patches. The
# detection dataset digit_scenes also splits these photographs at column 384. Therefore no training
# patch shows a background of its validation images.
TEXTURE_PARTS = {"train": (0, 352, 16), "test": (384, 512, 32)}

FACES_TRAIN = 75  # number of training patches, out of the 100 patches per class


def read_digits(split: str, root: object = None) -> SplitContents:
    """Read scikit-learn's handwritten digits, 8x8 gray, enlarged to 32x32 with equal channels.

    Images are float32, because their 17 gray levels have no exact uint8 values.
    """
    digits, labels = digits_of_sklearn()
    rows = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    gray = torch.from_numpy(digits[rows]).float().unsqueeze(1) / 16  # the values are 0 to 16
    # For a factor of 4, the interpolation weights are binary fractions. Therefore the result is
    # the same on every machine.
    images = interpolate(gray, size=(32, 32), mode="bilinear", align_corners=False)
    names = tuple(str(digit) for digit in range(10))
    targets = torch.from_numpy(labels[rows])
    return SplitContents(images.repeat(1, 3, 1, 1), targets, names)


def read_textures(split: str, root: object = None) -> SplitContents:
    """Cut 32x32 gray patches from the left (train) or right (test) part of six photographs."""
    first, end, stride = TEXTURE_PARTS[split]
    patches = []
    for photo in TEXTURES.values():
        pixels = getattr(data, photo)()
        gray = pixels if pixels.ndim == 2 else pixels[:, :, 1]  # color would reveal the class
        part = gray[:512, first:end]
        windows = np.lib.stride_tricks.sliding_window_view(part, (PATCH, PATCH))
        patches.append(windows[::stride, ::stride].reshape(-1, 1, PATCH, PATCH))
    labels = torch.arange(len(TEXTURES)).repeat_interleave(len(patches[0]))
    images = torch.from_numpy(np.concatenate(patches)).repeat(1, 3, 1, 1)
    return SplitContents(images, labels, tuple(TEXTURES))


def read_faces(split: str, root: object = None) -> SplitContents:
    """Read scikit-image's 25x25 gray patches of Labeled Faces in the Wild, enlarged to 32x32.

    The dataset does not identify persons, so the same person may be in both splits.
    """
    gray = torch.from_numpy(data.lfw_subset()).unsqueeze(1)  # (200, 1, 25, 25) float64, faces first
    large = interpolate(gray, size=(32, 32), mode="bilinear", align_corners=False)
    # Rounding to uint8 removes floating-point differences between processors.
    images = (large * 255).round().clamp(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)
    rows = slice(None, FACES_TRAIN) if split == "train" else slice(FACES_TRAIN, None)
    images = torch.cat([images[:100][rows], images[100:][rows]])
    labels = torch.arange(2).repeat_interleave(len(images) // 2)
    return SplitContents(images, labels, ("face", "other"))
