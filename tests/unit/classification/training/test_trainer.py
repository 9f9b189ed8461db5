"""Whole runs with a few digits and a small network: resuming, kills, signals, collapses."""

import copy
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from classification.datasets.open import open_split
from classification.pretrain.run import pretraining
from classification.pretrain.settings import PretrainSettings
from classification.training import overfitting, trainer
from classification.training.learner import Learner
from classification.training.settings import AttackSettings
from classification.training.trainer import Training
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import claimed
from robust_backbones.core.input_statistics import IMAGENET
from robust_backbones.core.signals import Stopped
from tests.support.processes import watch_starts
from tests.support.small_models import learning

EVALUATION = AttackSettings("l2", 1.0, 2, 1.0, random_start=True, use_best=True)
CHANGES = dict(
    steps=1,
    epochs=3,
    batch_size=12,
    lr_schedule="one-cycle",
    warmup=0.5,
    augmentation="shift2",
    seed=3,
)


def run_of(folder, images=60, save_seconds=600.0, workers=0, **changes) -> Training:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(392, 10),
    )
    train_settings = learning(**CHANGES | changes)
    settings = PretrainSettings(
        arch="small",
        dataset="digits",
        image_size=32,
        image_range=None,
        statistics=IMAGENET,
        limit=None,
        test_limit=None,
        held_out=0.0,
        recipe="quick",
        train=train_settings,
        evaluation=EVALUATION,
        sync_bn=False,
        deterministic=False,
    )
    train, test = (open_split("digits", split, limit=images) for split in ("train", "test"))
    return pretraining(
        Learner(network, train_settings),
        train,
        test,
        settings,
        {"arch": "small"},
        folder,
        workers,
        save_seconds,
    )


def outcome(folder) -> tuple:
    """Weights, momentum and metrics of a finished run, without times."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    timed = {"seconds", "images_per_second"}
    history = [{k: v for k, v in r.items() if k not in timed} for r in state["history"]]
    tensors = [state["model"], state["optimizer"], state.get("training_model")]
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return flat(tensors), history, metrics


def flat(node) -> list:
    """All leaves, with tensors as lists, so that == compares them."""
    if isinstance(node, torch.Tensor):
        return node.tolist()
    if isinstance(node, dict):
        return [flat(v) for v in node.values()]
    return [flat(v) for v in node] if isinstance(node, list) else node


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Outcome of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    run_of(folder).run()
    return outcome(folder)


def test_a_run_writes_all_files(tmp_path, capsys):
    run_of(tmp_path).run()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"checkpoint.pt", "metrics.jsonl", "result.json", "curves.png", "tensorboard"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    common = {
        "epoch",
        "train_loss",
        "train_top1",
        "clean_loss",
        "clean_top1",
        "adversarial_loss",
        "adversarial_top1",
        "lr",
        "images_per_second",
        "seconds",
    }
    assert set(lines[0]) == common and set(lines[-1]) == common | {"robust_top1", "robust_loss"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["robust_top1"] == lines[-1]["robust_top1"]
    assert result["data"]["train"]["images"] == 60 and result["hardware"]["processes"] == 1
    assert "epoch 3/3: loss" in capsys.readouterr().out


def stop_after(run: Training, steps: int, monkeypatch) -> None:
    """Send SIGTERM during one step of the run."""
    step, done = run.learner.step, []

    def counted(*args, **kwargs):
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    monkeypatch.setattr(run.learner, "step", counted)


def test_workers_start_once_and_change_nothing(tmp_path, straight, monkeypatch):
    started = watch_starts(monkeypatch)
    first = run_of(tmp_path, workers=2)
    stop_after(first, 7, monkeypatch)  # in the second of three epochs
    with pytest.raises(Stopped):
        first.run()
    once = len(started)
    run_of(tmp_path, workers=2).run()
    assert outcome(tmp_path) == straight
    # Two for training, and one for each of two evaluations that have a single batch.
    assert (once, len(started)) == (4, 8)
    assert not any(each.is_alive() for each in started[4:])


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 15])
def test_a_run_stopped_at_any_step_resumes_bit_exactly(tmp_path, straight, monkeypatch, steps):
    first = run_of(tmp_path)
    stop_after(first, steps, monkeypatch)
    with pytest.raises(Stopped):
        first.run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 5 * state["epoch"] + state["batch"] == steps
    torch.manual_seed(99)  # the global generator must not matter
    run_of(tmp_path).run()
    assert outcome(tmp_path) == straight


def test_a_run_stopped_in_an_evaluation_resumes_bit_exactly(tmp_path, straight, monkeypatch):
    first, evaluate = run_of(tmp_path), trainer.evaluate

    def asked(*args, **kwargs):
        first.signals.requested = first.epoch == 1
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", asked)
        with pytest.raises(Stopped):
            first.run()
    run_of(tmp_path).run()
    assert outcome(tmp_path) == straight


def run_and_be_killed(folder) -> None:
    torch.set_num_threads(1)
    run_of(folder, save_seconds=0.0).run()


def test_a_run_killed_20_times_ends_bit_identical(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_training"])
    # Both runs are subprocesses, because the number of threads affects rounding.
    process = context.Process(target=run_and_be_killed, args=(tmp_path / "straight",))
    process.start()
    process.join()
    folder, moments = tmp_path / "killed", random.Random(0)
    kills = found = 0
    while kills < 20 or not (folder / "result.json").exists():
        process = context.Process(target=run_and_be_killed, args=(folder,))
        process.start()
        if kills < 20:
            begun = folder / "checkpoint.pt"
            while kills and not begun.exists() and process.is_alive():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.25))
            found += process.is_alive()
            process.kill()
            kills += 1
        process.join()
        if kills < 20 and (folder / "result.json").exists():
            (folder / "result.json").unlink()  # killed after the end: repeat the last part
        assert kills < 20 or process.exitcode in (0, -signal.SIGKILL)
    assert found >= 15  # kills of a running process
    assert outcome(folder) == outcome(tmp_path / "straight")


@pytest.mark.parametrize("changes", [dict(lr=0.2), dict(seed=4)])
def test_other_settings_or_other_data_are_not_resumed(tmp_path, monkeypatch, changes):
    first = run_of(tmp_path)
    stop_after(first, 2, monkeypatch)
    with pytest.raises(Stopped):
        first.run()
    (name,) = changes
    with pytest.raises(UserError, match=f"{name} is .* there, {changes[name]} here"):
        run_of(tmp_path, **changes).run()
    with pytest.raises(UserError, match="data.* is .*Use the same settings"):
        run_of(tmp_path, images=50).run()


@pytest.mark.parametrize("contents", [{"weight": torch.ones(1)}, [1]])
def test_a_foreign_checkpoint_is_not_resumed(tmp_path, contents):
    torch.save(contents, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="checkpoint.pt: not an unfinished training run"):
        run_of(tmp_path).run()


def test_a_loss_that_is_not_finite_saves_the_images(tmp_path):
    with pytest.raises(UserError, match="step . of epoch .: the loss became .*Lower --lr.*images"):
        run_of(tmp_path, lr=1e30, lr_schedule="constant", warmup=0.0).run()
    found = torch.load(tmp_path / "not_finite_rank0.pt", weights_only=True)
    assert found["x"].shape == (12, 3, 32, 32) and found["settings"]["lr"] == 1e30


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, changes):
    run = run_of(tmp_path, epochs=1, **changes)

    def spoil(run):
        torch.nn.init.constant_(next(run.learner.model.parameters()), float("inf"))
        return {}

    run.examine = spoil
    with pytest.raises(UserError, match="checkpoint.pt was not written, because training diverged"):
        run.run()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_collapse_is_reported_and_rolled_back(tmp_path, monkeypatch, capsys):
    """Destroy the weights in epoch 3, as catastrophic overfitting would."""
    changes = dict(method="fast", random_start=True, use_best=False, epochs=4, lr=0.2)
    run = run_of(tmp_path, images=200, **changes)
    examine, kept = run.examine, []

    def spoilt(run):
        if run.epoch == 2:
            for p in run.learner.model.parameters():
                torch.nn.init.zeros_(p.data)
        else:
            kept[:] = [copy.deepcopy(run.learner.model.state_dict())]
        return examine(run)

    monkeypatch.setattr(run, "examine", spoilt)
    run.run()
    out = capsys.readouterr().out
    assert "catastrophic overfitting in epoch 3" in out and "the weights of epoch 2" in out
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(v, kept[0][k]) for k, v in state["model"].items())
    assert [r.get("rolled_back", 0) for r in state["history"]] == [0, 0, 1]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["epoch"] == 2 and not (tmp_path / "last_good.pt").exists()
    assert result["metrics"]["clean_top1"] == state["history"][1]["clean_top1"]


def test_the_last_good_weights_are_saved_before_the_checkpoint(tmp_path):
    run = run_of(tmp_path, method="fast", random_start=True, use_best=False)
    save, epochs = run._save, []

    def watched(name="checkpoint.pt"):
        save(name)
        if name == "checkpoint.pt":
            good = torch.load(tmp_path / "last_good.pt", weights_only=True)
            epochs.append((run.epoch, good["epoch"]))

    run._save = watched
    run.run()
    assert epochs == [(1, 1), (2, 2), (3, 3)]


def test_a_collapse_without_the_last_good_weights_is_an_error(tmp_path, monkeypatch):
    run = run_of(tmp_path, method="fast", random_start=True, use_best=False)
    monkeypatch.setattr(overfitting, "collapsed", lambda *args: True)
    with pytest.raises(UserError, match="last_good.pt is missing"):
        run.run()


def test_warmup_and_epochs_count_updates_alike(tmp_path):
    """Free training replays each batch: a pass with 4 updates per batch counts as 4 epochs."""
    run = run_of(tmp_path, method="free", steps=4, epochs=8, warmup=2.0, lr_schedule="constant")
    rates = [run._lr(update) for update in range(4 * run.batches)]
    assert rates.index(max(rates)) == 2 * run.batches - 1


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    code = (
        "import sys; from robust_backbones.core.files import claimed\n"
        "from robust_backbones.core.errors import user_errors\n"
        "with user_errors(), claimed(sys.argv[1]): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with claimed(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"{tmp_path}: another run is writing to this folder. Wait until it ends" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0  # the lock is released


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    first = run_of(tmp_path)
    stop_after(first, 2, monkeypatch)
    with pytest.raises(Stopped):
        first.run()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="checkpoint.pt: File too large. The old file"):
            run_of(tmp_path).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]
