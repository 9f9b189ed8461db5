"""Estimate the sampling variance of a mean over test images."""

import numpy as np


def deviations(values: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Compute the weight of each image in a mean, and its contribution to the mean's variance.

    Args:
        values: value of each image, `(N,)`.
        labels: labels `(N,)`, int, for the mean over classes; None: mean over images. Classes with
            a single image are combined into one stratum, because one image has no variance.

    Returns:
        Weights `(N,)` that sum to 1, and contributions `(N,)` that sum to the unbiased variance.
    """
    if labels is None:
        labels = np.zeros(len(values), int)
    _, groups, counts = np.unique(labels, return_inverse=True, return_counts=True)
    center = np.bincount(groups, values) / counts
    shares = 1 / (len(counts) * counts[groups])
    single = (counts == 1)[groups]
    squares = (values - center[groups]) ** 2 * (counts / np.maximum(counts - 1, 1))[groups]
    if (number := np.count_nonzero(single)) > 1:  # collapsed strata (Cochran 1977, section 5A.12)
        alone = values[single]
        squares[single] = (alone - alone.mean()) ** 2 * number / (number - 1)
    elif number and number < len(values):
        squares[single] = squares[~single].mean()
    return shares, shares**2 * squares
