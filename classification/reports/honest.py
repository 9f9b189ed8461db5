"""The best of several networks without the luck of having been the best: chosen on one part of the
results, reported on the other."""

import numpy as np

from classification.reports.scatter import pooled
from classification.reports.statistics import CONFIDENCE, TRIALS, Difference, student

SPLITS = 20  # of the test images, of which one half chooses and the other reports


def deltas(robust: np.ndarray, standard: np.ndarray, labels: np.ndarray | None = None, *,
                  splits: int = SPLITS, seed: int = 0) -> np.ndarray:  # fmt: skip
    """Differences between the best robust and the best standard network, each chosen on what it is
    not reported on: other test images, and, where there are several, other trials.

    For each of `splits` random halvings, each half and each trial, the networks are chosen by the
    other half and the other trials. Averaged over the halvings.

    Args:
        robust, standard: `(networks, trials, N)`, 1 where right.
        labels: as in `statistics.over_images`.

    Returns:
        `(trials, N)`, as `statistics.over_images` takes it.
    """
    _, trials, n = robust.shape
    robust, standard = robust.astype(np.float32), standard.astype(np.float32)
    weights = np.ones(n) if labels is None else 1 / np.bincount(labels)[labels]
    rng, total, every = np.random.default_rng(seed), np.zeros((trials, n)), np.arange(trials)
    for _ in range(splits):
        first = np.zeros(n, bool)
        first[rng.permutation(n)[: n // 2]] = True
        for chooses in (first, ~first):
            part = (weights * chooses).astype(np.float32)
            a, b = (best_by_others(networks @ part) for networks in (robust, standard))
            found = robust[a, every] - standard[b, every]
            total += np.where(chooses, 0, found)
    return total / splits


def best_by_others(scores: np.ndarray) -> np.ndarray:
    """For each trial the network with the highest mean over the other trials.

    Args:
        scores: `(networks, trials)`; with one trial that one chooses.

    Returns:
        `(trials,)`, numbers of networks.
    """
    if scores.shape[1] == 1:
        return scores.argmax(0)
    return (scores.sum(1, keepdims=True) - scores).argmax(0)


def over_trials(robust: np.ndarray, standard: np.ndarray) -> Difference | None:
    """The same where nothing is known but accuracies: other trials choose, on the same images. So
    it takes away the luck of the seeds only. None of one trial.

    Args:
        robust, standard: `(networks, trials)`, percent.
    """
    trials = np.arange(robust.shape[1])
    if len(trials) < 2:
        return None
    a, b = best_by_others(robust), best_by_others(standard)
    mean = float(np.mean(robust[a, trials] - standard[b, trials]))
    scatter, n = pooled(np.concatenate([robust, standard])), len(trials)
    assert scatter is not None  # of two trials or more
    return student(mean, scatter.error(n, chosen=True), scatter.df, CONFIDENCE, TRIALS, n)
