"""Cross-fitting: choose the best network on part of the results, and evaluate it on the rest."""

import numpy as np

SPLITS = 20  # random halvings of the test images


def cross_fit(
    right: np.ndarray, labels: np.ndarray | None = None, *, splits: int = SPLITS, seed: int = 0
) -> np.ndarray:
    """Return the correctness of a side's best network, chosen on other images and other trials.

    The images are halved at random. For each half and each trial, the network is chosen on the
    other half and in the other trials. The result is averaged over several halvings.

    Args:
        right: correctness `(networks, trials, N)` in [0, 1]. If there is only one trial, the
            network is chosen in this trial, on the other half of the images.
        labels: classes `(N,)` int for the mean over classes; None: mean over images.
        splits: number of random halvings.
        seed: seed for the halvings.

    Returns:
        Correctness `(trials, N)` in [0, 1].
    """
    networks, trials, images = right.shape
    if networks == 1:
        return right[0].astype(np.float32)
    right = right.astype(np.float32)
    weights = np.ones(images) if labels is None else 1 / np.bincount(labels)[labels]
    rng, first = np.random.default_rng(seed), np.zeros((images, splits), np.float32)
    for split in range(splits):
        first[rng.permutation(images)[: images // 2], split] = 1
    half = right @ (weights[:, None] * first).astype(np.float32)  # (networks, trials, splits)
    whole = right @ weights.astype(np.float32)
    found = np.zeros((trials, images), np.float32)
    for scores, reports in ((half, 1 - first), (whole[..., None] - half, first)):
        best = best_by_others(scores)
        picked = (best == np.arange(networks)[:, None, None]).astype(np.float32)
        for network in np.flatnonzero(picked.any((1, 2))):
            found += (picked[network] @ reports.T) * right[network]
    return found / splits


def best_by_others(scores: np.ndarray) -> np.ndarray:
    """Return, for each trial, the index of the network with the highest mean over the other trials.

    Args:
        scores: scores `(networks, trials, ...)`, higher is better. If there is only one trial, the
            network is chosen in this trial.

    Returns:
        Indices of networks, `(trials, ...)` int.
    """
    if scores.shape[1] == 1:
        return scores.argmax(0)
    return (scores.sum(1, keepdims=True) - scores).argmax(0)


def cross_fit_accuracies(table: np.ndarray) -> np.ndarray:
    """Return the accuracies of a side's best network, chosen in other trials on the same images.

    This removes the selection bias that seeds cause. The bias that images cause remains, and
    `estimates.from_accuracies` bounds it.

    Args:
        table: accuracies `(networks, trials)`, percent.

    Returns:
        Accuracies `(trials,)`, percent.
    """
    return table[best_by_others(table), np.arange(table.shape[1])]
