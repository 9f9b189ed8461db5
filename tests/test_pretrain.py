"""The real command on a few digits: what it writes, skips, resumes and refuses."""

import dataclasses
import json
import re
import subprocess
import sys
import time

import pytest
import torch

from classification import attacks, engine, pretrain
from classification.datasets import DATASETS
from classification.models import load_classifier
from robust_backbones import checkpoint

FEW = ["--epochs", "2", "--batch-size", "12", "--steps", "1", "--eval-steps", "2", "--seed", "3",
       "--device", "cpu"]  # fmt: skip


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    row = DATASETS["digits"]

    def read(split, root=None):
        images, labels, names = row.read(split)
        return images[:25], labels[:25], names

    monkeypatch.setitem(DATASETS, "digits", dataclasses.replace(row, read=read))


def run(output, *options):
    pretrain.main([*FEW, "--output", str(output), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one finished run, made by the first test that asks; not to be changed."""
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
    assert contents["format"] == checkpoint.FORMAT and contents["epoch"] == 2
    found = checkpoint.read(done / "checkpoint.pt")
    assert (found.arch, found.layout) == ("resnet18", "robust_backbones")
    assert found.mean == DATASETS["digits"].mean and found.std == DATASETS["digits"].std
    expected = dict(arch="resnet18", dataset="digits", classes=10, constraint="l2", eps=1.0,
                    steps=1, random_start=False, use_best=True, epochs=2, image_size=32,
                    seed=3)  # fmt: skip
    assert expected.items() <= found.metadata.items()
    assert found.metadata["step_size"] == pytest.approx(2 / 3)
    assert {"mean", "std", "code_version"} <= set(found.metadata)
    model = load_classifier(done / "checkpoint.pt")
    images, labels, _ = DATASETS["digits"].read("test")
    assert engine.evaluate(model, images, labels, 25) == lines(done)[-1]["clean_top1"]


def test_the_result_names_its_attack_its_data_and_its_settings(done):
    result = json.loads((done / "result.json").read_text())
    assert result["kind"] == "pretrain" and result["seed"] == 3
    assert 0 <= result["metrics"]["robust_top1"] <= result["metrics"]["clean_top1"] <= 100
    assert result["settings"]["evaluation"] == {
        "attack": "pgd", "constraint": "l2", "eps": 1.0, "steps": 2, "step_size": 1.25,
        "random_start": True, "use_best": True,
    }  # fmt: skip
    assert result["settings"]["lr_schedule"] == "one-cycle"
    assert result["data"]["test"]["images"] == 25
    assert result["data"]["train"]["fingerprint"] != result["data"]["test"]["fingerprint"]


def test_one_line_of_metrics_per_epoch(done):
    first, last = lines(done)
    common = {"epoch", "train_loss", "train_top1", "clean_top1", "lr", "seconds"}
    assert set(first) == common and set(last) == common | {"robust_top1"}
    assert (first["epoch"], last["epoch"]) == (1, 2)


def test_a_finished_run_is_skipped(done, capsys):
    before = (done / "result.json").read_bytes()
    run(done)
    assert "finished; nothing to do" in capsys.readouterr().out
    assert (done / "result.json").read_bytes() == before


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_finished_run_with_other_settings_is_kept(done, capsys, resume):
    with pytest.raises(SystemExit) as stop:
        run(done, "--lr", "0.5", *resume)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "lr is 0.03 there, 0.5 here; choose another --output" in err and err.count("\n") == 1


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A run killed in its second epoch."""
    whole = engine.train_one_epoch

    def train_one_epoch(*args, **kwargs):
        if (tmp_path / "checkpoint.pt").exists():
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_one_epoch", train_one_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    return tmp_path


def test_resuming_gives_the_uninterrupted_run(unfinished, done, capsys):
    with pytest.raises(SystemExit) as stop:
        run(unfinished)
    assert stop.value.code == 2
    assert "pass --resume to go on with it, or choose another --output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(unfinished, "--resume", "--weight-decay", "0")
    assert "weight_decay is 0.0005 there, 0.0 here" in capsys.readouterr().err

    run(unfinished, "--resume")
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out
    once, twice = (torch.load(p / "checkpoint.pt")["model"] for p in (done, unfinished))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    for a, b in zip(lines(done), lines(unfinished), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}
    a, b = (json.loads((p / "result.json").read_text())["metrics"] for p in (done, unfinished))
    assert a == b


@pytest.mark.parametrize(
    "options, radius",
    [
        (["--constraint", "l2"], 1.0),
        (["--constraint", "linf"], 8 / 255),
        (["--constraint", "linf", "--eval-eps", "4/255"], 4 / 255),
    ],
)
def test_a_standard_model_is_attacked_too(tmp_path, monkeypatch, options, radius):
    radii = []

    def pgd(model, x, y, *, eps, **kwargs):
        radii.append(eps)
        return x

    monkeypatch.setattr(attacks, "pgd", pgd)
    run(tmp_path, "--epochs", "1", "--eps", "0", "--resume", *options)  # nothing there: starts
    assert radii == [radius]  # one batch of the evaluation, none of the training
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["settings"]["eps"] == 0
    assert result["settings"]["evaluation"]["eps"] == radius


@pytest.mark.parametrize(
    "options, message",
    [
        (["--arch", "vgg16"], "invalid choice: 'vgg16'.*resnet18"),
        (["--dataset", "mnist"], "invalid choice: 'mnist'.*digits"),
        (["--constraint", "l1"], "invalid choice: 'l1'.*l2.*linf"),
        (["--constraint", "linf", "--eps", "4"], "did you mean 4/255?"),
        (["--eps", "-1"], "'-1' is not a finite number of at least 0"),
        (["--eps", "1/0"], "'1/0' is not a finite number of at least 0"),
        (["--eps", "nan"], "'nan' is not a finite number of at least 0"),
        (["--epochs", "0"], "'0' is not a whole number of at least 1"),
        (["--steps", "1.5"], "'1.5' is not a whole number of at least 1"),
        (["--batch-size", "1"], "'1' is not a whole number of at least 2"),
        (["--batch-size", "26"], "batch size 26 exceeds the 25 training images"),
        (["--step-size", "0"], "'0' is not a finite number above 0"),
        (["--eval-eps", "0"], "'0' is not a finite number above 0"),
        (["--lr", "0"], "'0' is not a finite number above 0"),
        (["--lr", "1e30"], "the loss became (nan|inf) at step .*; lower it"),
        (["--momentum", "1"], "'1' is not a number between 0 and 1"),
        (["--device", "abacus"], "device 'abacus' cannot be used here; one of: .*cpu"),
    ],
)
def test_user_mistakes(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, "--eps", "0", *options)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert not (tmp_path / "result.json").exists()


def test_a_broken_result_file(tmp_path, capsys):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert "result.json is not a result file; choose another --output" in capsys.readouterr().err


def test_an_output_that_cannot_be_a_folder_is_told_of_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run(tmp_path / "file")
    captured = capsys.readouterr()
    assert "cannot write" in captured.err and "epoch 1" not in captured.out


def test_help_explains_every_option_and_comes_at_once():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "classification.pretrain", "--help"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert time.perf_counter() - start < 1.5
    options = re.split(r"\n  --", done.stdout.split("options:")[1])[1:]
    assert len(options) >= 17 and all("default" in " ".join(o.split()) for o in options)


def test_the_parser_offers_what_the_attacks_have():
    assert set(pretrain.STANDARD_EVAL_EPS) == set(attacks.CONSTRAINTS)
