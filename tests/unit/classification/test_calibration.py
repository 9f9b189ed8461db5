"""Calibration against scikit-learn and plain loops."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import log_loss

from classification import calibration
from classification.calibration import (
    Scores,
    accuracy_at_coverage,
    adaptive_ece,
    best_temperature,
    score,
    summarize,
)


def logits_and_labels(n=200, classes=6, seed=0, factor=3.0):
    """Logits that are too confident by `factor`, and labels."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=g)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    return factor * logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_scores_match_scikit_learn(temperature):
    logits, labels = logits_and_labels()
    found = score(logits, labels, temperature)
    p = (logits.double() / temperature).softmax(1).numpy()
    assert found.nll.mean() == pytest.approx(log_loss(labels, p, labels=range(6)))
    assert found.brier.mean() == pytest.approx(((p - np.eye(6)[labels]) ** 2).sum(1).mean())
    np.testing.assert_allclose(found.confidence, p.max(1))
    assert found.right.tolist() == (p.argmax(1) == labels.numpy()).tolist()


@pytest.mark.parametrize("n", [1, 7, 15, 16, 200])
def test_the_calibration_error_is_a_loop_over_equal_bins(n):
    rng = np.random.default_rng(n)
    confidence, right = rng.random(n), rng.integers(2, size=n).astype(float)
    order = np.argsort(confidence)
    bins = [b for b in np.array_split(order, 15) if len(b)]
    found = adaptive_ece(confidence[order], right[order])
    sizes = sorted(map(len, np.split(order, np.unique(np.arange(15) * n // 15)[1:])))
    assert sizes == sorted(map(len, bins))  # the larger bins may be others
    gaps, last = [], 0
    for start in [*np.unique(np.arange(15) * n // 15)[1:], n]:
        members = order[last:start]
        gaps.append(len(members) / n * abs(confidence[members].mean() - right[members].mean()))
        last = start
    assert found == pytest.approx(100 * sum(gaps))
    if n % 15 == 0 or n < 15:
        own = [len(b) / n * abs(confidence[b].mean() - right[b].mean()) for b in bins]
        assert found == pytest.approx(100 * sum(own))


@pytest.mark.parametrize("percent, images", [(50, 4), (80, 6), (90, 7), (100, 8), (1, 1)])
def test_coverage_counts_the_most_confident_images(percent, images):
    right = np.array([0, 1, 0, 1, 0, 1, 1, 1.0])
    assert accuracy_at_coverage(right, percent) == pytest.approx(100 * right[-images:].mean())


def test_the_temperature_minimizes_the_nll_and_undoes_overconfidence():
    logits, labels = logits_and_labels(5000, factor=3.0)
    found = best_temperature(logits, labels)
    assert found == pytest.approx(3.0, rel=0.1)
    grid = np.geomspace(2, 5, 401)
    losses = [torch.nn.functional.cross_entropy(logits / t, labels).item() for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


def test_no_temperature_is_best_if_all_images_are_right():
    logits, _ = logits_and_labels()
    assert best_temperature(logits, logits.argmax(1)) is None


def test_a_class_without_training_images():
    """Its logit is -inf: its images have an infinite NLL, and do not affect the temperature."""
    logits, labels = logits_and_labels(300)
    known = labels != 2
    logits[:, 2] = -torch.inf
    expected = best_temperature(logits[known][:, [0, 1, 3, 4, 5]], _renumbered(labels[known]))
    assert best_temperature(logits, labels) == pytest.approx(expected)
    found = score(logits, labels)
    assert np.isinf(found.nll).tolist() == (~known).tolist()
    assert np.isfinite(found.brier).all() and found.brier.max() <= 2
    row = summarize([found], [None], None)
    assert np.isinf(row["nll"]["mean"]) and np.isfinite(row["brier"]["interval"]).all()
    assert best_temperature(logits[:0], labels[:0]) is None


def _renumbered(labels):
    return labels - (labels > 2).long()


def test_intervals_of_means_are_normal_intervals(monkeypatch):
    logits, labels = logits_and_labels(2000)
    trials = [score(logits, labels), score(logits + 0.1, labels)]
    found = summarize(trials, [2.0, 3.0], trials)
    nll = np.mean([trial.nll for trial in trials], 0)
    half = norm.ppf(0.975) * nll.std(ddof=1) / len(nll) ** 0.5
    expected = [nll.mean() - half, nll.mean() + half]
    assert found["nll"]["interval"] == pytest.approx(expected, abs=0.15 * half)
    assert found["nll"]["trials"] == pytest.approx([trial.nll.mean() for trial in trials])
    assert found["temperature"] == [2.0, 3.0] and set(found["scaled"]) == {"nll", "brier", "ece"}
    for row in [found["nll"], found["ece"], *found["coverage"].values()]:
        assert row["interval"][0] <= row["mean"] <= row["interval"][1]
    monkeypatch.setattr(calibration, "BLOCK", 5000)  # the size of the blocks has no effect
    assert summarize(trials, [2.0, 3.0], trials) == found


def test_a_resample_of_the_error_is_the_error_of_a_resample():
    """Against copies of the images, with a different order of confidences in each trial."""
    logits, labels = logits_and_labels(40)
    (counts,) = calibration._resamples(40)
    for scores in (score(logits, labels), score(-logits, labels)):
        order, columns = calibration._sorted(scores)
        found = adaptive_ece(*calibration._repeat(columns, counts[:3, order])[2:])
        for row in range(3):
            index = np.repeat(np.arange(40), counts[row])
            index = index[np.argsort(scores.confidence[index], kind="stable")]
            expected = adaptive_ece(scores.confidence[index], scores.right[index])
            assert found[row] == pytest.approx(expected)


@pytest.mark.parametrize("gap, least", [(0.03, 0.8), (0.1, 0.8), (0.2, 0.85)])
def test_intervals_of_the_error_cover_the_truth(monkeypatch, gap, least):
    """Quantiles of the resamples never cover the small gap, because the error is biased."""
    monkeypatch.setattr(calibration, "RESAMPLES", 200)
    rng, covered = np.random.default_rng(0), []
    for _ in range(60):
        confidence = 0.1 + 0.9 * rng.beta(4, 1.5, size=1000)
        right = (rng.random(1000) < confidence * (1 - gap)).astype(float)
        scores = Scores(right, right, confidence, right)
        low, high = summarize([scores], [None], None)["ece"]["interval"]
        covered.append(low <= 100 * gap * (0.1 + 0.9 * 4 / 5.5) <= high)
    assert np.mean(covered) >= least
