"""Contests of robust and standard networks: with predictions and without, by metric, by seeds."""

import csv

import numpy as np
import pytest
import torch
from result_records import transfer

from classification import metrics
from classification.reports import comparisons, records, statistics
from classification.transfers import predictions


def runs(tmp_path, task, levels, *, seeds=(0, 1, 2), images=150, files=True):
    """A network for each probability of being right, and its predictions on disk."""
    rng, found = np.random.default_rng(0), []
    classes = 5
    labels = np.sort(rng.integers(0, classes, images))
    hard = rng.random(images)
    for eps, level in levels.items():
        for seed in seeds:
            right = (hard + rng.normal(0, 0.1, images)) < level
            said = np.where(right, labels, (labels + 1) % classes)
            metric = metrics.METRICS["mean_per_class" if task == "pets" else "top1"]
            accuracy = metric(torch.from_numpy(said), torch.from_numpy(labels), classes)
            record = transfer(task, "resnet18", eps, accuracy, seed=seed, folder=tmp_path)
            found.append(record)
            if files:
                write(record.path.parent / predictions.FILE, labels, [said])
    return records.merged(found)


def write(path, labels, trials):
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "label", *(f"trial{k}" for k in range(len(trials)))])
        writer.writerows(zip(range(len(labels)), labels, *trials, strict=True))


@pytest.mark.parametrize("task", ["cifar10", "pets"])
def test_differences_are_those_of_the_accuracies(tmp_path, task):
    standard, robust = runs(tmp_path, task, {0.0: 0.5, 1.0: 0.8})
    found = comparisons.difference(robust, standard)
    assert found.over == statistics.IMAGES_AND_TRIALS and found.p < 0.01
    assert found.mean == pytest.approx(robust.mean - standard.mean)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("task", ["cifar10", "pets"])
def test_contest_with_predictions(tmp_path, task):
    standard, *robust = runs(tmp_path, task, {0.0: 0.5, 0.5: 0.6, 1.0: 0.8})
    contests = comparisons.corrected({"a": comparisons.contest(robust, [standard])})
    found = contests["a"]
    assert found.robust.first.eps == 1 and found.verdict == "robust better"
    assert found.honest.over == statistics.IMAGES_AND_TRIALS
    # One is so much better that it is always chosen: nothing is luck.
    assert found.honest.mean == pytest.approx(found.lucky.mean, abs=0.5)


def test_equals_lose_the_luck(tmp_path):
    standard, *robust = runs(tmp_path, "cifar10", dict.fromkeys([0.0, *range(1, 9)], 0.6))
    found = comparisons.contest(robust, [standard])
    assert found.honest.mean < found.lucky.mean


def test_without_predictions_it_is_trials(tmp_path):
    standard, *robust = runs(tmp_path, "cifar10", {0.0: 0.5, 0.5: 0.6, 1.0: 0.8}, files=False)
    assert comparisons.contest(robust, [standard]).honest.over == statistics.TRIALS


def test_other_seeds_or_images_are_not_paired(tmp_path):
    (standard,) = runs(tmp_path / "a", "cifar10", {0.0: 0.5}, seeds=(0, 1))
    (robust,) = runs(tmp_path / "b", "cifar10", {1.0: 0.8}, seeds=(5, 6))
    found = comparisons.contest([robust], [standard])
    assert found.lucky.over == statistics.UNPAIRED and found.honest == found.lucky
    (other,) = runs(tmp_path / "c", "cifar10", {1.0: 0.8}, seeds=(0, 1), images=90)
    assert predictions.right([standard, other]) is None
    assert comparisons.contest([], [standard]) is None


@pytest.mark.parametrize("text", ["", "index,label\n0,1\n", "a,b,c\n1,2,3\n", "index,label,trial0\n"
                                  "0,1\n", "index,label,trial0\n0,1,x\n"])  # fmt: skip
def test_broken_predictions_are_none(tmp_path, text):
    (run,) = runs(tmp_path, "cifar10", {0.0: 0.5}, seeds=(0,), files=False)
    path = run.first.path.parent / predictions.FILE
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert predictions.right([run]) is None


def test_trials_of_one_file(tmp_path):
    record = transfer(folder=tmp_path)
    record = records.Record(**vars(record) | {"accuracies": (50.0, 100.0), "seeds": (0, 1)})
    write(record.path.parent / predictions.FILE, [0, 1], [[0, 0], [0, 1]])
    right, labels = predictions.right(records.merged([record]))
    assert right.tolist() == [[[True, False], [True, True]]] and labels.tolist() == [0, 1]
