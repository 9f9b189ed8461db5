"""The command on a few digits: output files, skipping, resuming, and errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from classification import transforms as tf
from classification.datasets import loader
from classification.datasets.open import open_split
from classification.datasets.shard_writer import write_shards
from classification.datasets.specs import DATASETS
from classification.models import load_classifier
from classification.pretrain import __main__ as pretrain
from classification.pretrain import options as pretrain_options
from classification.training import methods
from classification.training import settings as settings_tables
from classification.training.evaluate import evaluate
from classification.training.trainer import Training
from robust_backbones import attacks
from robust_backbones.checkpoint.formats import FORMAT
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.signals import EXIT_RESUMABLE
from tests.support import processes
from tests.support.pretrain_runs import FEW
from tests.support.small_data import write_tree


def run(output, *options):
    pretrain.main([*FEW, "--output", str(output), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of one finished run, which tests must not change."""
    return tmp_path_factory.mktemp("pretrain") / "run"


@pytest.fixture
def done(finished):
    if not finished.exists():
        run(finished)
    return finished


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_checkpoint_is_a_classifier_that_others_can_read(done):
    contents = torch.load(done / "checkpoint.pt", weights_only=True)
    assert contents["format"] == FORMAT and contents["epoch"] == 2
    found = read_checkpoint(done / "checkpoint.pt")
    assert (found.arch, found.layout) == ("shufflenet_v2_x1_0", "robust_backbones")
    assert found.statistics == DATASETS["digits"].statistics.of("file")
    expected = dict(
        arch="shufflenet_v2_x1_0",
        method="pgd",
        dataset="digits",
        classes=10,
        constraint="l2",
        eps=1.0,
        steps=1,
        random_start=False,
        use_best=True,
        epochs=2,
        image_size=32,
        seed=3,
    )
    assert expected.items() <= found.metadata.items()
    assert found.metadata["step_size"] == pytest.approx(2 / 3)
    assert {"mean", "std", "code_version"} <= set(found.metadata)
    model = load_classifier(done / "checkpoint.pt")
    batches = loader.load_batches(open_split("digits", "test", limit=20), 20)
    assert evaluate(model, batches).top1 == lines(done)[-1]["clean_top1"]


def test_the_result_has_attack_data_and_settings(done):
    result = json.loads((done / "result.json").read_text())
    assert result["kind"] == "pretrain" and result["seed"] == 3
    assert 0 <= result["metrics"]["robust_top1"] <= result["metrics"]["clean_top1"] <= 100
    assert result["settings"]["evaluation"] == {
        "attack": "pgd",
        "constraint": "l2",
        "eps": 1.0,
        "steps": 2,
        "step_size": 1.25,
        "random_start": True,
        "use_best": True,
    }
    assert result["settings"]["recipe"] == "quick"
    assert result["settings"]["lr"] == pytest.approx(0.03 * 12 / 64)  # the linear scaling rule
    assert result["data"]["test"]["images"] == 20
    assert result["data"]["train"]["fingerprint"] != result["data"]["test"]["fingerprint"]


def test_a_finished_run_is_skipped(done, capsys):
    before = (done / "result.json").read_bytes()
    run(done)
    assert "finished. Nothing to do" in capsys.readouterr().out
    assert (done / "result.json").read_bytes() == before


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_finished_run_with_other_settings_is_an_error(done, capsys, resume):
    with pytest.raises(SystemExit) as stop:
        run(done, "--lr", "0.5", *resume)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "lr is 0.005625 there, 0.5 here. Choose another --output" in err and err.count("\n") == 1


def test_resuming_needs_the_option(tmp_path, capsys):
    """test_trainer.py tests that resuming is exact."""
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path)
    assert stop.value.code == 2
    assert "Add --resume to continue it, or choose another --output" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--resume", "must")
    assert "has no run to resume. Omit --resume must" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_75_and_resume_continues(
    tmp_path, monkeypatch, capsys, number
):
    output = tmp_path / "run"
    words = [
        *FEW,
        "--epochs",
        "60",
        "--output",
        str(output),
        "--resume",
        "auto",
        "--save-seconds",
        "0",
    ]
    (process,) = processes.start(tmp_path / "log", 1, "classification.pretrain.__main__", *words)
    while not (output / "checkpoint.pt").exists() and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, number)
    (done,) = processes.finish(tmp_path / "log", [process])
    assert done.code == EXIT_RESUMABLE
    assert f"stopped; the run is saved in {output}. Continue with --resume" in done.stdout
    state = torch.load(output / "checkpoint.pt", weights_only=True)
    monkeypatch.setattr(Training, "_train_epoch", None)  # a call fails
    with pytest.raises(TypeError):
        pretrain.main(words)
    *facts, last = capsys.readouterr().out.splitlines()
    names = ["training", "data", "weights", "device", "precision", "output", "log"]
    assert [fact.split()[0] for fact in facts] == names
    assert last == f"resuming after {state['epoch']} of 60 epochs and {state['batch']} of 2 steps"
    log = (output / "log.txt").read_text()  # of both processes
    assert log.count("settings: {") == 2 and all(fact in log for fact in facts)


@pytest.mark.parametrize(
    "options, radius",
    [
        (["--constraint", "l2"], 1.0),
        (["--constraint", "linf"], 8 / 255),
        (["--constraint", "linf", "--eval-eps", "4/255"], 4 / 255),
    ],
)
def test_standard_models_are_attacked_in_the_evaluation(tmp_path, monkeypatch, options, radius):
    radii = []

    def pgd(model, x, y, *, eps, **kwargs):
        radii.append(eps)
        return x

    monkeypatch.setattr("classification.training.evaluate.pgd", pgd)
    run(tmp_path, "--epochs", "1", "--eps", "0", "--resume", *options)  # nothing to resume: starts
    assert radii == [radius]  # one batch of the evaluation, none of the training
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["settings"]["eps"], result["settings"]["method"]) == (0, "standard")
    assert result["settings"]["evaluation"]["eps"] == radius


def settings(*options):
    args = pretrain_options.parser("").parse_args([*options, "--output", "x"])
    return pretrain_options.make_settings(args).to_json()


def test_the_papers_hyperparameters_are_the_default():
    """hyperparameters.yaml: adversarial_pretraining."""
    found = settings("--data", "/imagenet")
    assert {
        "arch": "resnet50",
        "dataset": "imagenet",
        "method": "pgd",
        "constraint": "l2",
        "eps": 3.0,
        "steps": 3,
        "step_size": 2.0,
        "random_start": False,
        "use_best": True,
        "epochs": 90,
        "batch_size": 512,
        "lr": 0.1,
        "lr_schedule": "step",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
        "augmentation": "imagenet",
        "warmup": 0.0,
        "label_smoothing": 0.0,
    }.items() <= found.items()


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--batch-size", "1024"], dict(lr=0.2)),  # the linear scaling rule
        (["--batch-size", "1024", "--lr", "0.1"], dict(lr=0.1)),
        (["--recipe", "quick"], dict(epochs=5, lr_schedule="one-cycle", eps=1.0, nesterov=True)),
        (["--constraint", "linf"], dict(eps=4 / 255, step_size=8 / 3 / 255)),
        (["--method", "fast"], dict(steps=1, step_size=3.75, lr_schedule="cyclic")),
        (["--method", "free", "--eps", "1"], dict(steps=4, step_size=1.0)),
        (["--method", "free", "--steps", "8"], dict(steps=8)),
        (["--method", "trades", "--beta", "2"], dict(steps=10, step_size=0.75, beta=2.0)),
        (["--no-use-best", "--random-start"], dict(use_best=False, random_start=True)),
        (["--eps", "0"], dict(method="standard", eps=0)),
        (["--method", "standard"], dict(method="standard", eps=0)),
    ],
)
def test_what_options_decide(options, expected):
    found = settings(*options)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--arch", "vgg16"], "architecture 'vgg16' is unknown. Did you mean vgg16_bn"),
        (["--dataset", "mnist"], "dataset 'mnist' is unknown. For your own images, choose folder"),
        (["--constraint", "l1"], "invalid choice: 'l1'.*l2.*linf"),
        (["--constraint", "linf", "--eps", "4"], "Did you mean 4/255"),
        (["--eps", "-1"], "'-1' is not a finite number of at least 0"),
        (["--eps", "1/0"], "'1/0' is not a finite number of at least 0"),
        (["--eps", "nan"], "'nan' is not a finite number of at least 0"),
        (["--epochs", "0"], "'0' is not a whole number of at least 1"),
        (["--steps", "1.5"], "'1.5' is not a whole number of at least 1"),
        (["--batch-size", "1"], "'1' is not a whole number of at least 2"),
        (["--batch-size", "26"], "--batch-size 26: there are only 24 training images"),
        (["--step-size", "0"], "'0' is not a finite number above 0"),
        (["--eval-eps", "0"], "'0' is not a finite number above 0"),
        (["--lr", "0"], "'0' is not a finite number above 0"),
        (["--lr", "1e30"], "step . of epoch .: the loss became (nan|inf) at .*Lower --lr"),
        (["--method", "pgd"], "--method pgd with --eps 0: standard training needs eps 0"),
        (["--method", "standard", "--eps", "1"], "--method standard with --eps 1: standard"),
        (["--label-smoothing", "1"], r"'1' is not a number in \[0, 1\)"),
        (["--accumulate", "5"], "--batch-size 12 cannot be split into 5 equal parts of at least 2"),
        (["--accumulate", "12"], "cannot be split into 12 equal parts of at least 2 images"),
        (["--dataset", "cifar10"], "'cifar10' needs data, .* Pass --data"),
        (
            ["--limit", "9"],
            "a limit of 9 images is less than the 10 classes of digits. Choose at least 10",
        ),
        (["--momentum", "1"], "'1' is not a number between 0 and 1"),
        (
            ["--device", "abacus"],
            "--device abacus: torch cannot use this device. Choose from .*cpu",
        ),
    ],
)
def test_user_mistakes(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, "--eps", "0", *options)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("folder", [False, True])
def test_a_broken_result_file(tmp_path, capsys, folder):
    if folder:
        (tmp_path / "result.json").mkdir()
    else:
        (tmp_path / "result.json").write_text("{")
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert "result.json is not a result file. Choose another --output" in capsys.readouterr().err


def test_several_processes_without_torchrun(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path)
    assert stop.value.code == 2
    assert "WORLD_SIZE is 2, but LOCAL_RANK" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_an_error_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run(tmp_path / "file")
    captured = capsys.readouterr()
    assert f"{tmp_path / 'file'} is a file. Choose a folder." in captured.err
    assert "epoch 1" not in captured.out


def test_help_is_fast_and_explains_every_option():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "classification.pretrain", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - start < 1.5
    options = re.split(r"\n  --", done.stdout.split("options:")[1])[1:]
    assert len(options) >= 17 and all(re.search("default|required", o) for o in options)


def test_choices_match_the_implementations():
    assert set(pretrain_options.STANDARD_EVAL_EPS) == set(attacks.CONSTRAINTS)
    assert set(settings_tables.METHOD_DEFAULTS) == set(methods.METHODS)
    assert settings_tables.AUGMENTATIONS == tuple(tf.AUGMENTATIONS)


def test_held_out_training_images_replace_the_test_images(tmp_path):
    run(tmp_path, "--epochs", "1", "--eps", "0", "--held-out", "0.1")
    data = json.loads((tmp_path / "result.json").read_text())["data"]
    assert set(data) == {"train", "val"} and data["val"]["images"] == 20


@pytest.mark.parametrize("shards", [False, True])
def test_image_folders_and_shards(tmp_path, shards):
    tree = write_tree(tmp_path / "tree", {"train": 10, "test": 5})
    where = write_shards(tree, tmp_path / "shards", 6) if shards else tree
    options = [
        "--arch",
        "shufflenet_v2_x1_0",
        "--dataset",
        "folder",
        "--data",
        str(where),
        "--image-size",
        "32",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--lr",
        "0.01",
        "--eps",
        "0.5",
        "--method",
        "fast",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--eval-steps",
        "1",
    ]
    pretrain.main([*options, "--output", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["data"]["train"]["images"], result["data"]["test"]["images"]) == (30, 15)
    assert load_classifier(tmp_path / "run/checkpoint.pt").num_classes == 3
    assert all({"adversarial_top1", "guard_top1"} <= set(line) for line in lines(tmp_path / "run"))
