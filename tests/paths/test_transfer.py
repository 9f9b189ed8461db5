"""The command on a few digits: results, skipping, resuming, and errors."""

import json
import re
import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from classification import metrics
from classification.datasets import loader
from classification.datasets.open import open_split
from classification.models import load_classifier
from classification.transfer import __main__ as transfer
from classification.transfer import result as transfer_result
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint
from robust_backbones.core.signals import EXIT_RESUMABLE
from tests.support import processes
from tests.support.transfer_runs import FAST, TINY, UNUSUAL, run, table, write_network


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "resnet18.pt")


@pytest.fixture(scope="module")
def runs(network, tmp_path_factory):
    """Function from a name to the folder of its finished run; each run happens once."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    options = {
        "logistic": ["--trials", "2", "--save-classifier"],
        "knn": ["--probe", "knn"],
        "sgd": ["--probe", "sgd", *FAST, "--save-classifier"],
        "full": ["--mode", "full-network", "--trials", "2", *FAST, "--save-classifier"],
        "paper": ["--protocol", "paper", "--trials", "2", "--eval-every", "1", *FAST],
        "adversarial": ["--mode", "full-network", "--eps", "0.5", "--lr", "0.01", *FAST],
    }

    def folder(name):
        if name not in made:
            run(network, root / name, *options[name])
            made[name] = root / name
        return made[name]

    return folder


def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def features(network, split, limit):
    """Features by an independent way: torchvision's network without its last layer."""
    found, source = read_checkpoint(network), open_split("digits", split, limit=limit)
    net = build_network(found.arch, 7).eval()
    net.load_state_dict(
        found.tensors
        | {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    )
    net.fc = torch.nn.Identity()
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (found.statistics.mean, found.statistics.std)
    )
    with torch.no_grad():
        x = torch.cat([net((x - mean) / std) for x, _ in loader.load_batches(source, 10)])
    return x.double().numpy(), source.labels.numpy()


def test_a_logistic_probe_matches_scikit_learn(runs, network):
    found = result(runs("logistic"))
    x, y = features(network, "train", 40)
    x_test, y_test = features(network, "test", 30)
    for trial, row in enumerate(found["metrics"]["trials"]):
        reference = LogisticRegression(C=1 / row["chosen"]["penalty"], tol=1e-8, max_iter=5000)
        expected = reference.fit(x, y).predict(x_test)
        predicted = np.array(table(runs("logistic") / "per_image.csv")[1:], int)[:, 2 + trial]
        assert (predicted == expected).mean() > 0.95  # ties may differ
        assert row["accuracy"] == pytest.approx(100 * (predicted == y_test).mean())


@pytest.mark.parametrize("name", ["logistic", "sgd", "full"])
def test_the_saved_classifier_has_the_reported_accuracy(runs, name):
    found, folder = result(runs(name)), runs(name)
    source = open_split("digits", "test", limit=30)
    x = torch.cat([x for x, _ in loader.load_batches(source, 30)])
    for trial, row in enumerate(found["metrics"]["trials"]):
        model = load_classifier(folder / f"classifier_trial{trial}.pt")
        with torch.no_grad():
            predictions = model(x).argmax(1)
        assert metrics.top1(predictions, source.labels) == pytest.approx(row["accuracy"])
    read = read_checkpoint(folder / "classifier_trial0.pt")
    assert read.metadata["dataset"] == "digits" and read.metadata["classes"] == 10
    assert read.statistics == UNUSUAL.of("file")  # clean: the weights' own statistics


@pytest.mark.parametrize("name", ["logistic", "knn", "sgd", "full", "paper", "adversarial"])
def test_the_contents_of_a_result(runs, name):
    found, folder = result(runs(name)), runs(name)
    numbers, settings = found["metrics"], found["settings"]
    trials = numbers["trials"]
    values = [row["accuracy"] for row in trials]
    assert found["kind"] == "transfer" and numbers["metric"] == "top1" and numbers["images"] == 30
    assert numbers["accuracy"] == pytest.approx(np.mean(values))
    assert (numbers["min"], numbers["max"]) == (min(values), max(values))
    assert numbers["sd"] == (pytest.approx(np.std(values, ddof=1)) if len(trials) > 1 else None)
    assert numbers["interval"][0] <= numbers["accuracy"] <= numbers["interval"][1]
    assert [row["seed"] for row in trials] == list(range(len(trials)))
    assert found["data"]["train"]["images"] == 40 and found["data"]["test"]["images"] == 30
    assert settings["data"]["test"] == found["data"]["test"]["fingerprint"]
    assert found["weights_sha256"] == settings["weights_sha256"]
    assert settings["source"]["arch"] == "resnet18" and settings["source"]["eps"] == 0.5
    assert ("conditions" in numbers) == (name == "adversarial")
    assert ("calibration" in numbers) == (name != "knn")

    images = np.array(table(folder / "per_image.csv")[1:], int)
    right = (images[:, 2:] == images[:, 1:2]).mean(0)
    np.testing.assert_allclose(100 * right, values)
    confusion = np.array([row[1:] for row in table(folder / "confusion.csv")[1:]], int)
    assert confusion.sum() == 30 * len(trials)
    assert 100 * np.trace(confusion) / confusion.sum() == pytest.approx(numbers["accuracy"])
    recalls = [float(row[3]) for row in table(folder / "per_class.csv")[1:]]
    assert np.mean(recalls) == pytest.approx(numbers["mean_per_class"], abs=1e-3)
    curves = len(list(folder.glob("trial*/*/curves.png")))
    assert curves == {"sgd": 3, "full": 6, "paper": 4, "adversarial": 1}.get(name, 0)
    assert not list(folder.rglob("checkpoint.pt")) and not list(folder.rglob("best.pt"))


def test_the_best_candidate_is_chosen(runs):
    for name, option in (("logistic", "penalty"), ("knn", "neighbors"), ("sgd", "lr")):
        for row in result(runs(name))["metrics"]["trials"]:
            values = {c[option]: c["value"] for c in row["candidates"]}
            assert values[row["chosen"][option]] == max(values.values()), name
            assert len(values) >= (45 if name == "logistic" else 2)


def test_paper_best_epoch_and_last(runs):
    found = result(runs("paper"))
    assert found["settings"]["held_out"] == 0
    trials = found["metrics"]["trials"]
    assert len({row["chosen"]["lr"] for row in trials}) == 1  # one learning rate for all
    means = {}
    for row in trials:
        for candidate in row["candidates"]:
            means.setdefault(candidate["lr"], []).append(candidate["value"])
        chosen = next(c for c in row["candidates"] if c["lr"] == row["chosen"]["lr"])
        assert chosen["value"] == pytest.approx(row["accuracy"])  # measured again
        assert row["last"] <= row["accuracy"] and row["epoch"] in (1, 2)
    best = max(means, key=lambda lr: np.mean(means[lr]))
    assert trials[0]["chosen"]["lr"] == best
    expected = np.mean([row["last"] for row in trials])
    assert found["metrics"]["last_epoch_accuracy"] == pytest.approx(expected)


def test_trials_really_differ(runs):
    """Validation images, last layer and image order differ."""
    trials = result(runs("full"))["metrics"]["trials"]
    assert trials[0]["candidates"] != trials[1]["candidates"]
    states = [read_checkpoint(runs("full") / f"classifier_trial{k}.pt").tensors for k in (0, 1)]
    assert not torch.equal(states[0]["fc.bias"], states[1]["fc.bias"])


def test_a_finished_run_is_skipped_and_other_settings_are_an_error(runs, network, capsys):
    folder = runs("knn")
    before = (folder / "result.json").read_bytes()
    run(network, folder, "--probe", "knn")
    assert "finished. Nothing to do" in capsys.readouterr().out
    assert (folder / "result.json").read_bytes() == before
    with pytest.raises(SystemExit) as stop:
        run(network, folder, "--probe", "knn", "--seed", "1")
    assert stop.value.code == 2
    assert "seed is 0 there, 1 here. Choose another --output" in capsys.readouterr().err


def test_an_interrupted_run_resumes_to_the_same_result(runs, network, tmp_path):
    expected, output = result(runs("full"))["metrics"], tmp_path / "run"
    words = [
        *TINY,
        "--mode",
        "full-network",
        "--trials",
        "2",
        *FAST,
        "--save-classifier",
        "--weights",
        str(network),
        "--output",
        str(output),
        "--save-seconds",
        "0",
    ]
    codes = []
    for wanted in (1, 3):  # number of checkpoints when the signal comes
        log = tmp_path / f"log{wanted}"
        (process,) = processes.start(log, 1, "classification.transfer.__main__", *words)
        while len(list(output.rglob("checkpoint.pt"))) < wanted and process.is_alive():
            time.sleep(0.02)
        process.terminate()
        (done,) = processes.finish(log, [process])
        codes.append(done.code)
    assert codes == [EXIT_RESUMABLE] * 2 and "Repeat the same command to continue." in done.stdout
    (done,) = processes.run(tmp_path / "log", 1, "classification.transfer.__main__", *words)
    assert done.code == 0 and "resuming after" in done.stdout
    assert result(output)["metrics"] == expected


def test_learning_rates_are_pruned_only_on_demand(network, tmp_path):
    options = [
        "--mode",
        "full-network",
        "--epochs",
        "4",
        "--batch-size",
        "10",
        "--limit",
        "100",
        "--eval-every",
        "1",
        "--lr",
        "0.01",
        "0.0000001",
    ]
    whole = run(network, tmp_path / "whole", *options)
    (trial,) = whole["metrics"]["trials"]
    good, bad = trial["candidates"]
    lead = good["value"] - bad["value"]
    assert "stopped" not in bad and lead > 5  # otherwise the rest proves nothing
    assert whole["settings"]["prune_margin"] is None

    found = run(network, tmp_path / "early", *options, "--prune-margin", "1")
    (trial,) = found["metrics"]["trials"]
    assert trial["candidates"][0] == good and trial["chosen"] == {"lr": 0.01}
    assert 2 <= trial["candidates"][1]["stopped"] < 4 and found["settings"]["prune_margin"] == 1
    assert found["metrics"]["accuracy"] == whole["metrics"]["accuracy"]


def test_features_are_computed_once(runs, network, tmp_path, monkeypatch):
    runs("logistic")
    monkeypatch.setattr(loader, "load_batches", None)  # any call would fail
    found = run(network, tmp_path / "again", "--trials", "2")
    assert found["metrics"] == result(runs("logistic"))["metrics"]


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_the_metric_can_be_chosen(network, tmp_path, metric):
    found = run(network, tmp_path, "--metric", metric, "--test-limit", "33", "--penalty", "1")
    trial = found["metrics"]["trials"][0]
    assert found["metrics"]["metric"] == found["settings"]["metric"] == metric
    assert found["metrics"]["accuracy"] == trial[metric]


@pytest.mark.parametrize(
    "options", [[], ["--probe", "sgd", *FAST], ["--mode", "full-network", *FAST]]
)
def test_the_test_images_are_evaluated_once_at_the_end(network, tmp_path, monkeypatch, options):
    looks, original = [], loader.TestLoader.__iter__

    def watched(self):
        looks.append(self.split.split)
        return original(self)

    monkeypatch.setattr(loader.TestLoader, "__iter__", watched)
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    run(network, tmp_path / "run", *options)
    assert looks.count("test") == 1 and looks[-1] == "test"


def test_shots_and_fixed_choices(network, tmp_path):
    found = run(network, tmp_path, "--shots", "1", "--penalty", "1")
    row = found["metrics"]["trials"][0]
    assert row["chosen"] == {"penalty": 1.0} and row["candidates"] == []


def test_a_fraction_of_each_class(network, tmp_path):
    """40 images of ten classes: a quarter is one image of each class, drawn again in each trial."""
    words = ["--fraction", "0.25", "--penalty", "1", "--trials", "3"]
    found = run(network, tmp_path / "quarter", *words)
    assert found["settings"]["fraction"] == 0.25 and len(found["metrics"]["trials"]) == 3
    assert found["metrics"]["images_per_class"] == 1
    said = table(tmp_path / "quarter/per_image.csv")[1:]  # index, label, trials
    assert len({tuple(line[2 + k] for line in said) for k in range(3)}) == 3
    every = run(network, tmp_path / "all", "--fraction", "1", "--penalty", "1")
    assert every["settings"]["fraction"] is None and every["metrics"]["images_per_class"] == 4


@pytest.mark.parametrize("name", ["--downscale", "--image-size"])
def test_other_images_other_features(runs, network, tmp_path, name):
    one = run(network, tmp_path / "one", "--trials", "2", name, "16")
    assert one["settings"][name.strip("-").replace("-", "_")] == 16
    images = [table(folder / "per_image.csv") for folder in (tmp_path / "one", runs("logistic"))]
    assert images[0] != images[1]


def test_the_default_folder_names_the_run(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transfer.main([*TINY, "--weights", str(network), "--probe", "knn"])
    (folder,) = (tmp_path / "output" / "transfer").iterdir()
    assert re.fullmatch(r"digits-fixed-feature-clean-resnet18-[0-9a-f]{8}", folder.name)
    transfer.main([*TINY, "--weights", str(network), "--probe", "knn", "--neighbors", "3"])
    assert len(list((tmp_path / "output" / "transfer").iterdir())) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        (["--dataset", "mnist"], "dataset 'mnist' is unknown. For your own images, choose folder"),
        (["--mode", "half"], "invalid choice: 'half'"),
        (["--epochs", "3"], "--epochs does not apply to --probe logistic. Omit it, or choose"),
        (["--probe", "sgd", "--penalty", "1"], "--penalty does not apply to --probe sgd"),
        (
            ["--mode", "full-network", "--neighbors", "1"],
            "--neighbors does not apply to --mode full",
        ),
        (["--mode", "full-network", "--probe", "sgd"], "--probe with --mode full-network"),
        (["--batchnorm", "adapting"], "--probe logistic with --batchnorm adapting"),
        (["--probe", "sgd", "--steps", "2"], "--steps requires --eps. Add a radius"),
        (["--probe", "sgd", "--eps", "4", "--constraint", "linf"], "Did you mean 4/255"),
        (
            ["--probe", "sgd", "--batch-size", "41"],
            "--batch-size 41: there are only 30 training images",
        ),
        (["--held-out", "1"], "'1' is not a number between 0 and 1"),
        (["--shots", "30"], "--shots 30: .*'.*' has 4, '.*Choose at most 4"),
        (["--shots", "1"], "--shots 1: .* leaves none to train on. Use more images"),
        (["--fraction", "0"], "'0' is not a number above 0, at most 1"),
        (["--fraction", "1.5"], "'1.5' is not a number above 0, at most 1"),
        (["--fraction", "0.1", "--shots", "1"], "--fraction and --shots: both .* Remove one"),
        (["--fraction", "0.01"], "--fraction 0.01: .* leaves none to train on. Use more images"),
        (["--limit", "9"], "a limit of 9 images is less than the 10 classes of digits"),
        (["--dataset", "cars"], "dataset 'cars' needs data, .* Pass --data"),
        (
            ["--device", "abacus"],
            "--device abacus: torch cannot use this device. Choose from .*cpu",
        ),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--weights", "robust://resnet50_l2_eps7"], "resnet50_l2_eps7"),
    ],
)
def test_user_mistakes(network, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.delenv("ROBUST_BACKBONES_DATA", raising=False)
    with pytest.raises(SystemExit) as stop:
        run(network, tmp_path, *options)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert "training 1 of" not in printed.out and not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("told", ["metadata", "source_metadata"])
def test_facts_about_the_network_survive_conversion(told):
    facts = {
        "dataset": "digits",
        "method": "pgd",
        "constraint": "l2",
        "eps": 1.0,
        "epochs": 9,
        "seed": 4,
    }
    own = facts if told == "metadata" else {"eps": 1.0, "source_metadata": facts}
    found = Checkpoint({}, "resnet18", "detectron2", None, None, "", metadata=own)
    assert transfer_result.describe_source(found) == {"arch": "resnet18"} | facts
