"""Transfer results with conditions and calibration, as the command writes them, from made-up data.

An image is classified correctly if its difficulty is below the level of the network.
"""

import csv
from pathlib import Path
from statistics import fmean

import numpy as np

from robust_backbones.core import results

CLASSES, IMAGES = 5, 120
ATTACK, CORRUPTIONS, SHIFT = "l2 0.5, PGD-20x2", "corruptions", "sketch"
VERSIONS = {ATTACK: 1, CORRUPTIONS: 75, SHIFT: 1}
KINDS = {ATTACK: "attack", CORRUPTIONS: "corruptions", SHIFT: "shift"}
SCORES = {"nll": 0.6, "brier": 0.3, "ece": 5.0}


def write(
    folder,
    task="pets",
    *,
    arch="resnet18",
    eps=0.0,
    level=0.7,
    levels=None,
    seeds=(0, 1, 2),
    calibration=True,
    metrics=None,
    **settings,
):
    """Write a run with one trial for each seed.

    Args:
        folder: folder for all runs.
        task: name of the dataset.
        arch: architecture of the network.
        eps: eps of its pretraining.
        level: expected accuracy on clean images, in [0, 1].
        levels: mapping from conditions to the expected accuracy under them.
        seeds: seeds of the trials.
        calibration: whether the run has calibration scores.
        metrics: further entries of the metrics.
        settings: further settings.

    Returns:
        Path of the folder of the run.
    """
    weights = f"robust://{arch}_l2_eps{eps:g}"
    text = "-".join(f"{k}={v}" for k, v in settings.items())
    name = f"{task}-{arch}-{eps:g}-{'.'.join(map(str, seeds))}-{text}{'-more' * bool(levels)}"
    run = Path(folder, name)
    rng = np.random.default_rng(len(task))
    labels, hard = np.arange(IMAGES) % CLASSES, rng.permutation(IMAGES) / IMAGES
    clean = [_right(hard, level, 1, seed) for seed in seeds]
    _table(run / "per_image.csv", "trial", labels, [(labels + 1 - row) % CLASSES for row in clean])
    found = {
        "metric": "top1",
        "accuracy": 100 * fmean(row.mean() for row in clean),
        "interval": [60.0, 80.0],
        "trials": [
            {"seed": seed, "accuracy": 100 * row.mean(), "chosen": {}, "candidates": []}
            for seed, row in zip(seeds, clean, strict=True)
        ],
        "images": IMAGES,
    }
    if calibration:
        found["calibration"] = _calibration(len(seeds))
    if levels:
        found["conditions"] = [
            _condition(run, condition, labels, hard, own, seeds)
            for condition, own in levels.items()
        ]
        settings |= {"conditions": {"names": [*levels]}}
    results.write(
        run / "result.json",
        kind="transfer",
        seed=seeds[0],
        seconds=1.0,
        device="cpu",
        weights_sha256=f"digest of {weights}",
        metrics=found | (metrics or {}),
        settings={
            "dataset": task,
            "mode": "fixed-feature",
            "protocol": "clean",
            "arch": arch,
            "weights": weights,
            "probe": "logistic",
            "seed": seeds[0],
            "trials": len(seeds),
        }
        | settings,
        data={
            "train": {"name": task, "images": 400, "fingerprint": "train"},
            "test": {"name": task, "images": IMAGES, "fingerprint": "test"},
        },
    )
    return run


def _right(hard, level, versions, seed):
    """Number of versions `(N,)` of each image that a trial classifies correctly."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.15, (versions, len(hard)))
    return (hard + noise < level + 0.02 * rng.normal()).sum(0)


def _condition(run, name, labels, hard, level, seeds):
    versions = VERSIONS[name]
    right = [_right(hard, level, versions, seed + 100) for seed in seeds]
    file = f"conditions/{KINDS[name]}.csv"
    _table(run / file, "right", labels, right)
    trials = [100 * row.mean() / versions for row in right]
    found = {
        "name": name,
        "kind": KINDS[name],
        "images": IMAGES,
        "accuracy": fmean(trials),
        "sd": float(np.std(trials)),
        "min": min(trials),
        "max": max(trials),
        "interval": [0.0, 100.0],
        "trials": trials,
        "versions": versions,
        "file": file,
    }
    if KINDS[name] == "shift":
        found["data"] = {"name": name, "images": IMAGES, "fingerprint": "shifted"}
        found["calibration"] = _calibration(len(seeds))
    return found


def _calibration(trials):
    def entry(value):
        return {
            "mean": value,
            "sd": 0.0,
            "interval": [0.9 * value, 1.1 * value],
            "trials": [value] * trials,
        }

    return {name: entry(value) for name, value in SCORES.items()} | {
        "coverage": {share: entry(90.0) for share in ("50", "80", "90")},
        "temperature": [1.5] * trials,
        "scaled": {name: entry(value / 2) for name, value in SCORES.items()},
    }


def _table(path, column, labels, trials):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "label", *(f"{column}{k}" for k in range(len(trials)))])
        writer.writerows(zip(range(len(labels)), labels, *trials, strict=True))
