"""The datasets that installed packages hold: real, small, offline."""

from __future__ import annotations

# Of scikit-learn's 1,797 digits in their own order. The set goes writer by writer, so cutting it
# once leaves the test digits to writers who are mostly not in the training part.
DIGITS_TRAIN = 1437


def read_digits(split: str, root=None) -> tuple:
    """scikit-learn's real handwritten digits, 8x8 grey enlarged to 32x32 with equal channels.

    Returns:
        images `(N, 3, 32, 32)` float32 in [0, 1], labels `(N,)` int64, class names.
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
