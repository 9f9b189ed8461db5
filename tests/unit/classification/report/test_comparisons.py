"""Comparisons of robust and standard networks, with and without predictions."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind

from classification import metrics
from classification.report import comparisons, predictions, records
from classification.report.comparisons import Rules
from classification.report.verdicts import Missing, Outcome, Over
from tests.support.result_records import transfer


def runs(tmp_path, task, levels, *, seeds=(0, 1, 2), images=150, files=True):
    """Results of a network for each probability of a correct prediction."""
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


def judged(robust, standard, rules=None):
    found = comparisons.contest(robust, standard)
    return comparisons.with_verdicts({"a": found}, rules or Rules())["a"]


@pytest.mark.parametrize("task", ["cifar10", "pets"])
def test_two_networks_need_no_choice(tmp_path, task):
    standard, robust = runs(tmp_path, task, {0.0: 0.5, 1.0: 0.8})
    found = judged([robust], [standard])
    assert found.estimate.over == Over.TRIALS | Over.IMAGES and found.verdict.p < 0.01
    assert found.measured == pytest.approx(robust.mean - standard.mean)
    assert found.bias == pytest.approx(0, abs=1e-3)
    assert found.verdict.low < found.measured < found.verdict.high


@pytest.mark.parametrize("task", ["cifar10", "pets"])
def test_contest_with_predictions(tmp_path, task):
    standard, *robust = runs(tmp_path, task, {0.0: 0.5, 0.5: 0.6, 1.0: 0.8})
    found = judged(robust, [standard])
    assert found.robust.first.eps == 1 and found.verdict.outcome is Outcome.BETTER
    # One network is so much better that it is always chosen, so there is no selection bias.
    assert found.bias == pytest.approx(0, abs=0.5)


def test_cross_fitting_removes_the_selection_bias_of_equal_networks(tmp_path):
    standard, *robust = runs(tmp_path, "cifar10", dict.fromkeys([0.0, *range(1, 9)], 0.6))
    found = comparisons.contest(robust, [standard])
    assert found.estimate.mean < found.measured and found.bias > 0


def test_configurations_of_a_network_are_candidates(tmp_path):
    (standard,) = runs(tmp_path / "s", "cifar10", {0.0: 0.6})
    robust = []
    for k in range(6):
        for run in runs(tmp_path / str(k), "cifar10", {1.0: 0.6}):
            robust.append(replace(run, first=replace(run.first, settings={"epochs": k})))
    robust[3] = replace(robust[3], accuracies=tuple(a + 1 for a in robust[3].accuracies))
    found = comparisons.contest(robust, [standard])
    assert found.robust is robust[3] and found.bias > 0.5


def test_without_predictions_the_interval_is_over_trials(tmp_path):
    standard, robust = runs(tmp_path, "cifar10", {0.0: 0.5, 1.0: 0.8}, files=False)
    assert comparisons.contest([robust], [standard]).estimate.over is Over.TRIALS
    assert comparisons.contest([robust, robust], [standard]).estimate.unseen


def test_different_images_are_not_paired_but_different_seeds_are(tmp_path):
    (standard,) = runs(tmp_path / "a", "cifar10", {0.0: 0.5}, seeds=(0, 1, 2))
    (robust,) = runs(tmp_path / "b", "cifar10", {1.0: 0.8}, seeds=(5, 6, 7, 8))
    found = comparisons.contest([robust], [standard]).estimate
    assert found.trials == (4, 3) and found.over == Over.TRIALS | Over.IMAGES
    (other,) = runs(tmp_path / "c", "cifar10", {1.0: 0.8}, seeds=(0, 1, 2), images=90)
    assert predictions.correctness([standard, other]) is None
    assert comparisons.contest([other], [standard]).estimate.over is Over.TRIALS
    assert comparisons.contest([], [standard]) is None


LOGISTIC = {"probe": "logistic", "penalty": 1.0, "shots": None}


@pytest.mark.parametrize(
    "settings, fixed",
    [
        (LOGISTIC, True),
        (LOGISTIC | {"shots": 5}, False),
        (LOGISTIC | {"fraction": 0.5}, False),
        ({"probe": "sgd"}, False),
        ({}, False),
        (LOGISTIC | {"penalty": None}, False),
        ({"probe": "knn", "neighbors": None}, False),
        ({"probe": "knn", "neighbors": 5}, True),
    ],
)
def test_one_trial_is_enough_where_no_seed_matters(tmp_path, settings, fixed):
    sides = runs(tmp_path, "cifar10", {0.0: 0.5, 1.0: 0.8}, seeds=(0,))
    sides = [replace(run, first=replace(run.first, settings=settings)) for run in sides]
    found = judged([sides[1]], [sides[0]])
    assert found.verdict.outcome is (Outcome.BETTER if fixed else Outcome.CANNOT_TELL)
    assert found.estimate.missing is (None if fixed else Missing.TRIALS)


def test_networks_with_too_few_trials_are_excluded(tmp_path):
    standard, robust = runs(tmp_path / "a", "cifar10", {0.0: 0.5, 1.0: 0.8})
    (once,) = runs(tmp_path / "b", "cifar10", {3.0: 0.9}, seeds=(0,))
    assert comparisons.contest([robust, once], [standard]).estimate.trials == (3, 3)


def test_later_looks_have_a_smaller_error_probability(tmp_path):
    rules, alphas = Rules(), []
    for seeds in ((0, 1, 2), (0, 1, 2), (0, 1, 2, 3, 4), (0, 1, 2)):
        folder = tmp_path / str(len(alphas))
        standard, robust = runs(folder, "cifar10", {0.0: 0.5, 1.0: 0.8}, seeds=seeds)
        alphas.append(judged([robust], [standard], rules).verdict.alpha)
    assert alphas == [0.04, 0.04, 0.005, 0.04]
    assert rules.looks == {" a": ["3 v 3", "5 v 5"]}


def test_p_values_are_corrected_for_their_number(tmp_path):
    standard, robust = runs(tmp_path, "cifar10", {0.0: 0.5, 1.0: 0.52})
    found = comparisons.contest([robust], [standard])
    alone = comparisons.with_verdicts({0: found}, Rules())[0].verdict.p
    several = comparisons.with_verdicts(dict.fromkeys(range(3), found), Rules())
    assert [c.verdict.p for c in several.values()] == pytest.approx([min(1, 3 * alone)] * 3)


def sourced(run, eps, seed, source=None):
    settings = {"source": {"dataset": "digits", "epochs": 9, "seed": seed} | (source or {})}
    first = replace(run.first, eps=eps, settings=settings, weights_sha256=f"{eps} {seed}")
    return replace(run, first=first)


def test_several_pretrainings_take_the_place_of_trials(tmp_path):
    rng, sides = np.random.default_rng(0), {}
    for eps in (0.0, 1.0):
        for seed, shift in enumerate(rng.normal(0, 3, 3)):
            (run,) = runs(tmp_path / f"{eps}-{seed}", "cifar10", {eps: 0.6}, files=False)
            run = replace(run, accuracies=tuple(a + shift for a in run.accuracies))
            sides.setdefault(eps, []).append(sourced(run, eps, seed))
    found = comparisons.contest(sides[1.0], sides[0.0])
    assert found.pretrainings and found.estimate.trials == (3, 3)
    means = [np.array([run.mean for run in sides[eps]]) for eps in (1.0, 0.0)]
    assert found.estimate.p == pytest.approx(ttest_ind(*means, equal_var=False).pvalue, rel=1e-3)
    assert not comparisons.contest(sides[1.0], sides[0.0][:1]).pretrainings


@pytest.mark.parametrize(
    "source, words",
    [
        ({}, ()),
        ({"epochs": 3}, ("epochs",)),
        ({"epochs": None}, ()),
        ({"dataset": "faces", "seed": 4}, ("pretraining data", "initialization")),
    ],
)
def test_pairs_with_different_recipes_are_marked(tmp_path, source, words):
    standard, robust = runs(tmp_path, "cifar10", {0.0: 0.5, 1.0: 0.8}, files=False)
    found = comparisons.contest([sourced(robust, 1.0, 0, source)], [sourced(standard, 0.0, 0)])
    assert found.differs == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "index,label\n0,1\n",
        "a,b,c\n1,2,3\n",
        "index,label,trial0\n0,1\n",
        "index,label,trial0\n0,1,x\n",
    ],
)
def test_invalid_predictions_are_ignored(tmp_path, text):
    (run,) = runs(tmp_path, "cifar10", {0.0: 0.5}, seeds=(0,), files=False)
    path = run.first.path.parent / predictions.FILE
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert predictions.correctness([run]) is None


def test_trials_of_one_file(tmp_path):
    record = transfer(folder=tmp_path)
    record = records.Record(**vars(record) | {"accuracies": (50.0, 100.0), "seeds": (0, 1)})
    write(record.path.parent / predictions.FILE, [0, 1], [[0, 0], [0, 1]])
    right, labels = predictions.correctness(records.merged([record]))
    assert [row.tolist() for row in right] == [
        [[True, False], [True, True]]
    ] and labels.tolist() == [0, 1]
