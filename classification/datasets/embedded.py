"""The datasets that installed packages hold: real, small, offline.

Each reader is `(split, root) -> images, labels, class names`, as in `sources.Source`, for the
splits train and test; `root` is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Contents = tuple["Tensor", "Tensor", tuple[str, ...]]

# Of scikit-learn's 1,797 digits in their own order. The set goes writer by writer, so cutting it
# once leaves the test digits to writers who are mostly not in the training part.
DIGITS_TRAIN = 1437

# Class -> photograph in the package of scikit-image, all at least 512 pixels wide and high.
TEXTURES = {
    "brick": "brick",
    "grass": "grass",
    "gravel": "gravel",
    "moon": "moon",
    "stars": "hubble_deep_field",
    "tissue": "immunohistochemistry",
}
PATCH = 32  # pixels
# Of each photograph's first 512 rows: columns, and pixels from one patch to the next. Training
# patches overlap; between them and the test patches lies a strip as wide as a patch. (The digit
# scenes of the detectors cut at 384, too: what trains here is never validated on there.)
TEXTURE_PARTS = {"train": (0, 352, 16), "test": (384, 512, 32)}

FACES_TRAIN = 75  # of the 100 of each class


def read_digits(split: str, root: object = None) -> Contents:
    """scikit-learn's real handwritten digits, 8x8 grey enlarged to 32x32 with equal channels.

    Images are float32: their sixteenths have no exact bytes.
    """
    import torch
    from sklearn.datasets import load_digits
    from torch.nn.functional import interpolate

    digits = load_digits()
    rows = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    grey = torch.from_numpy(digits.images[rows]).float().unsqueeze(1) / 16  # 0..16 in the source
    # Enlarging by 4 has binary fractions as weights: exact, hence the same fingerprint anywhere.
    images = interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    names = tuple(str(digit) for digit in range(10))
    return images.repeat(1, 3, 1, 1), torch.from_numpy(digits.target[rows]).long(), names


def read_textures(split: str, root: object = None) -> Contents:
    """32x32 grey patches of six photographs: the left part trains, the right part tests."""
    import numpy as np
    import torch
    from skimage import data

    first, end, stride = TEXTURE_PARTS[split]
    patches = []
    for photo in TEXTURES.values():
        pixels = getattr(data, photo)()
        grey = pixels if pixels.ndim == 2 else pixels[:, :, 1]  # green: colour would tell it all
        part = grey[:512, first:end]
        windows = np.lib.stride_tricks.sliding_window_view(part, (PATCH, PATCH))
        patches.append(windows[::stride, ::stride].reshape(-1, 1, PATCH, PATCH))
    labels = torch.arange(len(TEXTURES)).repeat_interleave(len(patches[0]))
    images = torch.from_numpy(np.concatenate(patches)).repeat(1, 3, 1, 1)
    return images, labels, tuple(TEXTURES)


def read_faces(split: str, root: object = None) -> Contents:
    """scikit-image's 25x25 grey patches of Labeled Faces in the Wild, enlarged to 32x32.

    The first 75 of each class train. Who is on them is not recorded: a person may be in both parts.
    """
    import torch
    from skimage.data import lfw_subset
    from torch.nn.functional import interpolate

    grey = torch.from_numpy(lfw_subset()).unsqueeze(1)  # (200, 1, 25, 25) float64, faces first
    large = interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    # Bytes, so that the last bits of other processors' arithmetic change nothing.
    images = (large * 255).round().clamp(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)
    rows = slice(None, FACES_TRAIN) if split == "train" else slice(FACES_TRAIN, None)
    images = torch.cat([images[:100][rows], images[100:][rows]])
    labels = torch.arange(2).repeat_interleave(len(images) // 2)
    return images, labels, ("face", "other")
