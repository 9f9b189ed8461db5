"""Further tests of transferred classifiers: attacks, corruptions, shifts and calibration."""

import json
import re
import sys

import imagecorruptions
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from classification import metrics
from classification.datasets import corrupted, loader
from classification.datasets.open import open_split
from classification.datasets.split import held_out_mask
from classification.models import Classifier, load_classifier
from classification.robustness_eval import __main__ as robustness_eval
from classification.robustness_eval import execute
from classification.robustness_eval.plan import PGD, Attack
from classification.training import methods
from classification.transfer import conditions, features
from classification.transfer.run import measure_transfer
from robust_backbones.core.signals import EXIT_RESUMABLE
from tests.support import processes
from tests.support.transfer_runs import FAST, TINY, run, table, write_network

KINDS = ["brightness", "contrast"]
CLASSES = (1, 4, 7)  # of the shifted images
SEED = 2020  # seed of `--test-limit`, with which robustness-eval chooses the same images
ATTACK = ["--attack", "l2:0.3", "linf:2/255", "--attack-steps", "3", "--attack-restarts", "2"]
SGD = ["--probe", "sgd", "--lr", "0.01", *FAST]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.pt")


def small() -> Classifier:
    """A network of a few layers, for tests that repeat a run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            torch.nn.Conv2d(3, 16, 5, stride=3),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(3),
            torch.nn.Flatten(),
            torch.nn.Linear(144, 7),
        ]
    return Classifier.wrap(
        torch.nn.Sequential(*layers), mean=(0.5,) * 3, std=(0.5,) * 3, features="4"
    )


def quick(folder, **options) -> dict:
    """Metrics of a run of the small network."""
    few = dict(dataset="digits", limit=40, test_limit=30, device="cpu", trials=1)
    return measure_transfer(small(), folder, **few | options)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """Dark digits of three classes."""
    folder, source = tmp_path_factory.mktemp("shift") / "dark", open_split("digits", "test")
    for label in CLASSES:
        (folder / str(label)).mkdir(parents=True)
        for i in (source.labels == label).nonzero().flatten()[:5].tolist():
            pixels = (200 * source.images[i]).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / str(label) / f"{i:04}.png")
    return folder


@pytest.fixture(scope="module")
def done(network, shifted, tmp_path_factory):
    """Folder of a finished run with all further tests."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--corruptions", *KINDS, "--also-test", f"dark={shifted}", "--save-classifier"]
    run(network, folder, "--limit", "100", "--trials", "2", "--seed", str(SEED), *ATTACK, *options)
    return folder


def read(folder) -> dict:
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_images() -> tuple[torch.Tensor, torch.Tensor]:
    source = open_split("digits", "test", limit=30)
    return next(loader.load_batches(source, 30))


test_images.__test__ = False


def test_the_result_has_the_keys_of_the_documents(done):
    found = read(done)
    names = ["l2 0.3, PGD-3x2", "linf 2/255, PGD-3x2", "corruptions", "dark"]
    files = ["l2_0.3_pgd-3x2", "linf_2-255_pgd-3x2", "corruptions", "dark"]
    assert [row["name"] for row in found["conditions"]] == names
    assert [row["file"] for row in found["conditions"]] == [f"conditions/{f}.csv" for f in files]
    assert [row["versions"] for row in found["conditions"]] == [1, 1, 10, 1]
    assert sorted(p.name for p in (done / "conditions").iterdir()) == sorted(
        f"{f}.csv" for f in files
    )
    for row in found["conditions"]:
        rows = table(done / row["file"])
        assert rows[0] == ["index", "label", "right0", "right1"]
        counts = np.array(rows[1:], int)[:, 2:]
        assert len(counts) == row["images"] and counts.max() <= row["versions"]
        accuracies = 100 * counts.mean(0) / row["versions"]
        np.testing.assert_allclose(row["trials"], accuracies)
        assert row["accuracy"] == pytest.approx(accuracies.mean())
        assert (row["min"], row["max"]) == pytest.approx((accuracies.min(), accuracies.max()))
        assert row["sd"] == pytest.approx(accuracies.std(ddof=1))
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    assert found["conditions"][1]["attack"] == {
        "family": "pgd",
        "constraint": "linf",
        "eps": 2 / 255,
        "steps": 3,
        "restarts": 2,
    }
    log = (done / "log.txt").read_text()
    assert f"; linf 2/255, PGD-3x2 {found['conditions'][1]['accuracy']:.2f} %; corr" in log


def plain_pgd(model, x, y, eps, steps, noise):
    """L2 PGD with one start for each noise; the image with the highest loss counts."""
    best, best_loss = x.clone(), torch.full((len(x),), -torch.inf)
    for each in noise:
        adv = (x + eps * each / each.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
        for _ in range(steps + 1):
            adv = adv.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(adv), y, reduction="none")
            better = loss.detach() > best_loss
            best[better], best_loss[better] = adv.detach()[better], loss.detach()[better]
            (g,) = torch.autograd.grad(loss.sum(), adv)
            adv = adv + 2.5 * eps / steps * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            length = (adv - x).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            adv = (x + (adv - x) * (eps / length).clamp(max=1)).clamp(0, 1)
    return best


def test_the_attack_goes_through_network_and_head_like_plain_pgd(done):
    x, y = test_images()
    attack = Attack(PGD, "l2", 0.3, 3, 2)
    rows = np.array(table(done / "conditions/l2_0.3_pgd-3x2.csv")[1:], int)
    for trial in range(2):
        model = load_classifier(done / f"classifier_trial{trial}.pt")
        own = execute.generator(SEED, attack, 0, torch.device("cpu"))
        noise = [torch.randn(x.shape, generator=own) for _ in range(2)]
        predictions = model(plain_pgd(model, x, y, 0.3, 3, noise)).argmax(1)
        assert rows[:, 2 + trial].tolist() == (predictions == y).int().tolist()
    clean = read(done)["accuracy"]
    assert 0 < read(done)["conditions"][0]["accuracy"] < clean  # otherwise equality proves little


def test_robustness_eval_of_the_saved_classifier_agrees(done, tmp_path):
    words = ["--weights", done / "classifier_trial1.pt", "--dataset", "digits", "--images", 30]
    words += ["--seed", SEED, "--eps", "0.3", "--steps", 3, "--restarts", 2, "--device", "cpu"]
    robustness_eval.main([str(word) for word in [*words, "--output", tmp_path / "run"]])
    found = read(tmp_path / "run")
    attacked = found["attacks"]["pgd-3x2 eps 0.3"]["accuracy"]
    assert attacked == pytest.approx(read(done)["conditions"][0]["trials"][1])
    assert found["clean_top1"] == pytest.approx(read(done)["trials"][1]["accuracy"])


def test_corruptions_match_a_plain_loop(done):
    x, y = test_images()
    expected = {kind: [[], [], [], [], []] for kind in KINDS}
    for trial in range(2):
        model = load_classifier(done / f"classifier_trial{trial}.pt")
        for kind in KINDS:
            for severity in range(1, 6):
                images = []
                for i, image in enumerate((255 * x).round().byte()):
                    np.random.seed(corrupted.seed(i, kind, severity) % 2**32)
                    pixels = imagecorruptions.corrupt(
                        image.permute(1, 2, 0).numpy(), severity, kind
                    )
                    images.append(torch.tensor(pixels).permute(2, 0, 1) / 255)
                with torch.no_grad():
                    right = model(torch.stack(images)).argmax(1) == y
                expected[kind][severity - 1].append(100 * right.double().mean().item())
    row = read(done)["conditions"][2]
    for kind in KINDS:
        assert row["by_corruption"][kind] == pytest.approx([np.mean(v) for v in expected[kind]])
    assert row["accuracy"] == pytest.approx(np.mean([*expected.values()]))


def test_a_shift_has_a_part_of_the_classes(done, shifted):
    files = sorted(shifted.glob("*/*.png"))
    x = torch.stack([torch.tensor(np.array(Image.open(f))).permute(2, 0, 1) / 255 for f in files])
    y = torch.tensor([int(f.parent.name) for f in files])
    row = read(done)["conditions"][3]
    assert row["classes"] == 3 and row["data"]["name"] == "dark" and row["data"]["images"] == 15
    for trial in range(2):
        model = load_classifier(done / f"classifier_trial{trial}.pt")
        with torch.no_grad():
            logits = model(x)[:, list(CLASSES)]
        right = torch.tensor(CLASSES)[logits.argmax(1)] == y
        assert row["trials"][trial] == pytest.approx(100 * right.double().mean().item())
        index = torch.searchsorted(torch.tensor(CLASSES), y)
        nll = torch.nn.functional.cross_entropy(logits, index).item()
        assert row["calibration"]["nll"]["trials"][trial] == pytest.approx(nll, rel=1e-4)
    assert row["calibration"]["temperature"] == read(done)["calibration"]["temperature"]


def test_calibration_of_a_logistic_probe_matches_scikit_learn(done, tmp_path):
    found, model = read(done)["calibration"], load_classifier(done / "classifier_trial0.pt")
    x, y = test_images()
    with torch.no_grad():
        p = model(x).double().softmax(1).numpy()
    assert found["nll"]["trials"][0] == pytest.approx(log_loss(y, p, labels=range(10)), rel=1e-4)
    temperature = found["temperature"][0]
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(np.log(p) / temperature), y)
    assert found["scaled"]["nll"]["trials"][0] == pytest.approx(expected.item(), rel=1e-3)


def test_the_temperature_comes_from_a_head_that_was_not_fitted_to_its_images(tmp_path):
    metrics = quick(tmp_path / "run", limit=200)
    train = open_split("digits", "train", limit=200)
    val = held_out_mask(train.labels, 0.2, 0).numpy()
    with torch.no_grad():
        x = small().features(next(loader.load_batches(train, 200))[0]).double().numpy()
    labels, penalty = train.labels.numpy(), metrics["trials"][0]["chosen"]["penalty"]
    head = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000)
    logits = torch.from_numpy(head.fit(x[~val], labels[~val]).decision_function(x[val]))
    grid, y = np.geomspace(0.01, 100, 2001), torch.from_numpy(labels[val])
    losses = [torch.nn.functional.cross_entropy(logits / t, y).item() for t in grid]
    expected = grid[int(np.argmin(losses))]
    assert 0.1 < expected < 10
    assert metrics["calibration"]["temperature"][0] == pytest.approx(expected, rel=0.02)


def test_features_run_once_per_image_for_all_trials(shifted, tmp_path, monkeypatch):
    images, original = [], Classifier.features

    def counted(self, x):
        images.append(len(x))
        return original(self, x)

    monkeypatch.setattr(Classifier, "features", counted)
    tests = dict(corruptions=["contrast"], also_test=[f"dark={shifted}"])
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    quick(tmp_path / "run", trials=3, penalty=1, **tests)
    assert sum(images) - images.count(1) == 40 + 30 + 30 * 5 + 15  # 1: the digest of the module


PGD_3 = dict(
    attack=["l2:0.3", "linf:2/255"],
    attack_steps=3,
    attack_restarts=2,
    attack_batch_size=8,
    penalty=1,
)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [3, 14, 30])
def test_an_interrupted_test_resumes_to_the_same_numbers(tmp_path, monkeypatch, after):
    """It stops in the middle of an attack of the first or of the second trial."""
    expected = quick(tmp_path / "whole", trials=2, **PGD_3)
    calls, original = [], execute.attack_batch

    def failing(*args):
        if len(calls) == after:
            raise Interrupted
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(execute, "attack_batch", failing)
    with pytest.raises(Interrupted):
        quick(tmp_path / "run", trials=2, **PGD_3)
    assert list((tmp_path / "run/conditions").glob("*.jsonl"))
    calls.clear()
    monkeypatch.setattr(execute, "attack_batch", lambda *a: (calls.append(a), original(*a))[1])
    assert quick(tmp_path / "run", trials=2, **PGD_3) == expected
    # Two trials of two constraints: four batches, clean and attacked. The unbounded attack
    # looks for masked gradients in the first trial only.
    assert len(calls) == 2 * 2 * (4 * 2) + 2 - after


def test_interrupted_corruptions_resume_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "EVAL_BATCH", 40)
    tests = dict(corruptions=["contrast", "brightness"], penalty=1)
    expected = quick(tmp_path / "whole", **tests)
    original, images = conditions.Networks.logits, []

    def failing(self, x):
        if len(images) == 5:
            raise Interrupted
        images.append(len(x))
        return original(self, x)

    monkeypatch.setattr(conditions.Networks, "logits", failing)
    with pytest.raises(Interrupted):
        quick(tmp_path / "run", **tests)
    monkeypatch.setattr(
        conditions.Networks, "logits", lambda *a: (images.append(len(a[1])), original(*a))[1]
    )
    assert quick(tmp_path / "run", **tests) == expected
    assert sum(images) == 30 * 10


@pytest.mark.parametrize("signalled", [1, 6])
def test_a_signal_stops_an_attack_with_the_exit_code(tmp_path, monkeypatch, signalled):
    calls, attack_batch, attack_images = [], execute.attack_batch, conditions.attack_images

    def watched(*args, stop, **options):
        def signalling(*batch):
            calls.append(batch)
            stop.requested = len(calls) == signalled
            return attack_batch(*batch)

        monkeypatch.setattr(execute, "attack_batch", signalling)
        return attack_images(*args, stop=stop, **options)

    monkeypatch.setattr(conditions, "attack_images", watched)
    with pytest.raises(SystemExit) as stop:
        quick(tmp_path / "run", attack=["l2:0.3"], attack_batch_size=8, penalty=1)
    assert stop.value.code == EXIT_RESUMABLE and len(calls) == signalled
    assert not (tmp_path / "run/result.json").exists()


def test_autoattack_on_a_part_of_the_images(tmp_path):
    options = dict(attack=["linf:32/255"], attack_steps=2, autoattack=10, penalty=1)
    pgd, auto = quick(tmp_path / "run", **options)["conditions"]
    assert auto["name"] == "linf 32/255, AutoAttack" and auto["images"] == 10
    assert auto["attack"] == pgd["attack"] | {"family": "autoattack", "steps": None}
    weak, strong = (np.array(table(tmp_path / "run" / row["file"])[1:], int) for row in (pgd, auto))
    assert sorted(strong[:, 1]) == list(range(10))  # one image of each class
    assert (weak[strong[:, 0]][:, :2] == strong[:, :2]).all()
    assert (weak[strong[:, 0]][:, 2] >= strong[:, 2]).all()


@pytest.mark.parametrize("mode", [dict(probe="sgd"), dict(mode="full-network")])
def test_adversarial_training_is_tested_at_its_radius(tmp_path, monkeypatch, mode):
    """The training attack goes through network and head, in adversarial linear probing as well."""
    losses, original = [], methods.pgd

    def watched(model, x, y, **options):
        found = original(model, x, y, **options)
        with torch.no_grad():
            losses.append([torch.nn.functional.cross_entropy(model(z), y) for z in (x, found)])
            assert model(x).shape == (len(x), 10)
        return found

    monkeypatch.setattr(methods, "pgd", watched)
    training = dict(eps="4/255", constraint="linf", lr=0.1, epochs=2, batch_size=8)
    (row,) = quick(tmp_path / "run", **mode, **training)["conditions"]
    settings = json.loads((tmp_path / "run/result.json").read_text())["settings"]
    assert row["name"] == "linf 4/255, PGD-20" and "evaluation" not in settings
    assert settings["conditions"]["attacks"] == [["linf", 4 / 255]]
    assert losses and all(after > before for before, after in losses)


def test_calibration_of_sgd_uses_the_candidates_last_checkpoint(tmp_path, monkeypatch):
    kept = {}  # the checkpoints before they are removed
    monkeypatch.setattr(
        "classification.transfer.finetune.remove_weights",
        lambda task: kept.update(
            {p.parent.name: torch.load(p, weights_only=True) for p in task.folder.rglob("ch*.pt")}
        ),
    )
    found = quick(tmp_path / "run", probe="sgd", lr=[0.1, 0.3], epochs=20, batch_size=8)
    (trial,), (temperature,) = found["trials"], found["calibration"]["temperature"]
    model = small().for_task(10, 0)
    model.load_state_dict(kept[f"choosing_lr{trial['chosen']['lr']:g}"]["model"])
    train = open_split("digits", "train", limit=40)
    val = held_out_mask(train.labels, 0.2, 0)
    x, y = next(loader.load_batches(train.subset(val.nonzero().flatten()), 40))
    with torch.no_grad():
        logits = model.eval()(x).double()
    grid = np.geomspace(0.01, 100, 2001)
    losses = [torch.nn.functional.cross_entropy(logits / t, y).item() for t in grid]
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.02)
    assert 0.1 < temperature < 10


@pytest.mark.parametrize(
    "options",
    [dict(penalty=1), dict(selection="test"), dict(probe="sgd", lr=0.1, epochs=1, batch_size=8)],
)
def test_no_temperature_without_validation_images(tmp_path, options):
    found = quick(tmp_path / "run", **options)["calibration"]
    assert found["temperature"] is None and found["scaled"] is None and found["nll"]["mean"] > 0


def test_the_metric_of_the_task_is_used(shifted, tmp_path):
    options = dict(penalty=1, metric="mean_per_class", test_limit=33, attack="l2:0.2")
    found = quick(tmp_path / "run", also_test=f"dark={shifted}", **options)
    for row in found["conditions"]:
        rows = np.array(table(tmp_path / "run" / row["file"])[1:], int)
        recalls = [rows[rows[:, 1] == c, 2].mean() for c in np.unique(rows[:, 1])]
        assert row["accuracy"] == pytest.approx(100 * np.mean(recalls))


def test_two_processes_share_the_tests(network, shifted, tmp_path):
    options = [*SGD, "--save-classifier", "--attack", "l2:0.3", "--attack-steps", "2"]
    options += ["--corruptions", "contrast", "--also-test", f"dark={shifted}"]
    words = [*TINY, "--seed", SEED, "--weights", network, "--output", tmp_path / "run", *options]
    done = processes.run(tmp_path / "log", 2, "classification.transfer.__main__", *words)
    assert [process.code for process in done] == [0, 0], done
    x, y = test_images()
    model, rows = load_classifier(tmp_path / "run/classifier_trial0.pt"), read(tmp_path / "run")
    attack = Attack(PGD, "l2", 0.3, 2)
    own = execute.generator(SEED, attack, 0, torch.device("cpu"))
    noise = [torch.randn(x.shape, generator=own)]
    adversarial = model(plain_pgd(model, x, y, 0.3, 2, noise)).argmax(1)
    accuracies = [row["accuracy"] for row in rows["conditions"]]
    assert accuracies[0] == pytest.approx(metrics.top1(adversarial, y))
    assert [row["images"] for row in rows["conditions"]] == [30, 30, 15]
    assert rows["calibration"]["nll"]["mean"] == pytest.approx(
        torch.nn.functional.cross_entropy(model(x), y).item(), rel=1e-4
    )


def test_knn_has_no_calibration(network, tmp_path):
    assert "calibration" not in run(network, tmp_path / "run", "--probe", "knn")["metrics"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--attack", "l3:1"], "'l3:1' is not CONSTRAINT:EPS, such as l2:0.5 or linf:4/255"),
        (["--attack", "l2:0"], "'l2:0' is not CONSTRAINT:EPS"),
        (["--attack", "l2"], "'l2' is not CONSTRAINT:EPS"),
        (["--attack", "linf:4"], "'linf:4': .* Did you mean 4/255"),
        (["--attack-steps", "3"], "--attack-steps has no effect without --attack"),
        (["--autoattack", "3"], "--autoattack has no effect without --attack"),
        (["--attack", "l2:1", "--autoattack", "31"], "there are only 30 test images"),
        (["--corruptions", "foggy"], "corruption 'foggy' is unknown. Did you mean fog"),
        (["--corruptions", "--image-size", "28"], "28 x 28 pixels, but corruptions need at"),
        (["--also-test", "dark"], "'dark' is not NAME=DIR"),
        (["--also-test", "train=x"], "'train' is reserved"),
        (["--also-test", "a=x", "a=y"], "two folders are named 'a'"),
        (["--also-test", "a=nowhere"], "nowhere: not a folder"),
        (["--also-test", "a=UNKNOWN"], "UNKNOWN: digits has no class 'ten'. Name the folders"),
        (["--probe", "knn", "--attack", "l2:1"], "--attack does not apply to --probe knn"),
        (["--probe", "knn", "--corruptions"], "--corruptions does not apply to --probe knn"),
        (["--probe", "knn", "--also-test", "a=x"], "--also-test does not apply to --probe knn"),
        (["--eval-steps", "3"], "--eval-steps is not an option"),
    ],
)
def test_user_mistakes(network, shifted, tmp_path, capsys, options, message):
    unknown = tmp_path / "UNKNOWN"
    for name in ("1", "ten"):
        (unknown / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(unknown / name / "x.png")
    options = [option.replace("UNKNOWN", str(unknown)) for option in options]
    with pytest.raises(SystemExit) as stop:
        run(network, tmp_path / "run", *options)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, package, hidden",
    [
        (["--attack", "l2:1", "--autoattack", "3"], "pyautoattack", "pyautoattack"),
        (["--corruptions"], "imagecorruptions-imaug", "imagecorruptions"),
    ],
)
def test_a_missing_package_is_reported_first(
    network, tmp_path, capsys, monkeypatch, options, package, hidden
):
    monkeypatch.setitem(sys.modules, hidden, None)
    monkeypatch.setattr(features, "extract", None)  # nothing is computed
    with pytest.raises(SystemExit) as stop:
        run(network, tmp_path / "run", *options)
    assert stop.value.code == 2 and f"{package} is not installed" in capsys.readouterr().err
